"""One upstream: the right transport for each query, and whether it is well."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Any

from kdns.errors import FormatError, UpstreamError
from kdns.observe.counters import Region
from kdns.observe.logs import Log
from kdns.upstream.ask import Ask, plain_ask
from kdns.upstream.datagrams import Datagrams
from kdns.upstream.faults import told
from kdns.upstream.meters import Meter, Standing
from kdns.upstream.settings import Settings, Target
from kdns.upstream.streams import Streams
from kdns.wire import rr
from kdns.wire.relay import Relay, read

if TYPE_CHECKING:
    from kdns.upstream.https import Https

CHECK_SECONDS = 1.0
"""How long a health check waits for its answer."""
_TICK = 0.05
_SLOW_TICK = 0.5
_SHORTEST_PAUSE = 0.01
_TC = 0x02
_NO_EDNS = (rr.FORMERR, rr.NOTIMP)
"""What servers say that do not understand an OPT."""


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """What upstreams use of the worker that they are in.

    background: runs a coroutine for as long as the worker serves. wrong: is shown each message that is dropped, and
    why; None if nobody looks.
    """

    region: Region
    log: Log
    background: Callable[[Coroutine[Any, Any, None]], None]
    wrong: Callable[[str, bytes], None] | None = None


class Upstream:
    """One address that is asked. To be used in the event loop only."""

    __slots__ = (
        "_around", "_checking", "_closed", "_datagrams", "_fast", "_https", "_meter", "_probe", "_read_timeout",
        "_settings", "_standing", "_streams", "_timer", "fails", "name", "target",
    )  # fmt: skip

    def __init__(self, target: Target, settings: Settings, around: Surroundings, *, shown: bool = True) -> None:
        """target: with an IP address. shown: among the upstreams of `forward`, in metrics."""
        self.target = target
        self.name = str(target)
        self.fails = 0
        self._settings = settings
        self._read_timeout = settings.read_timeout
        self._around = around
        self._meter = Meter(around.region, self.name, around.wrong)
        self._standing = Standing(around.region, self.name) if shown else None
        self._checking = self._closed = False
        self._streams: Streams | None = None
        self._datagrams: Datagrams | None = None
        self._https: Https | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fast = False
        self._probe = plain_ask(settings.health_domain, rr.NS, recursion=settings.health_recursion)
        try:
            self._prepare()
        except OSError as error:
            around.log.error(f"upstream {self.name} cannot be used: {told(error)}", key=f"tls {self.name}")

    def _prepare(self) -> None:
        """Make what the transport needs. Raises OSError if files for TLS cannot be used (any more)."""
        target, settings = self.target, self._settings
        if target.transport == "https":
            from kdns.upstream.https import Https  # 10 MB and 0.1 s, for those who need it

            self._https = Https(target, settings, settings.tls.context())
        else:
            secure = settings.tls.context() if target.transport == "tls" else None
            self._streams = Streams(target, settings, secure, self._meter)
            self._datagrams = Datagrams(target, settings, self._meter) if secure is None else None

    @property
    def is_down(self) -> bool:
        """Whether more health checks in a row than `max_fails` have failed."""
        return 0 < self._settings.max_fails < self.fails

    async def exchange(self, ask: Ask, tcp: bool, give_up: float) -> Relay:
        """Ask, and read the answer.

        tcp: ask over TCP; a truncated answer over UDP is asked for again so. A server that does not understand a query
        with an OPT is asked once more without. give_up: of the event loop's clock, for all of this. Raises
        ConnectionLostError or UpstreamError.
        """
        started = monotonic_ns()
        data = await self._transfer(ask, tcp, started / 1e9, give_up)
        if data[3] & 0xF in _NO_EDNS and ask.has_opt:
            data = await self._transfer(ask.plain(), tcp, monotonic(), give_up)
        try:
            answer = read(data, ask.question)
        except FormatError as error:
            self._meter.discarded("malformed", data)
            raise UpstreamError(f"malformed answer: {error}") from None
        self._meter.answered(answer.rcode, started)
        return answer

    def _transfer(self, ask: Ask, tcp: bool, now: float, give_up: float) -> Awaitable[bytes]:
        """What brings the answer, from its ID on. now: of the event loop's clock."""
        until = now + self._read_timeout
        if until > give_up:
            until = give_up
        if self._https is not None:
            return self._https.ask(ask, until)
        if self._streams is None:
            return self._prepared(ask, tcp, give_up)
        if not self._fast:
            self._tick_soon()
        if tcp or self._datagrams is None:
            return self._streams.ask(ask, now, until)
        return self._over_udp(self._datagrams, self._streams, ask, until, give_up)

    async def _prepared(self, ask: Ask, tcp: bool, give_up: float) -> bytes:
        """The same after files for TLS could not be used."""
        try:
            self._prepare()
        except OSError as error:
            raise UpstreamError(told(error)) from None
        return await self._transfer(ask, tcp, monotonic(), give_up)

    async def _over_udp(self, datagrams: Datagrams, streams: Streams, ask: Ask, until: float, give_up: float) -> bytes:
        data = await datagrams.ask(ask, until)
        if not data[2] & _TC:
            return data
        now = monotonic()
        try:
            return await streams.ask(ask, now, min(now + self._settings.read_timeout, give_up))
        except UpstreamError:
            return data  # better than nothing: the client may ask over TCP itself

    def _tick_soon(self) -> None:
        """One timer looks after all waits: often while queries are in flight, seldom while connections are open."""
        self._fast = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(_TICK, self._tick)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        busy = self._streams is not None and self._streams.tick(now)
        if self._datagrams is not None and self._datagrams.tick(now):
            busy = True
        was_busy, self._fast = self._fast, busy
        if busy or was_busy or (self._streams is not None and self._streams.is_open):  # some may wait for room only now
            self._timer = loop.call_later(_TICK if busy else _SLOW_TICK, self._tick)
        else:
            self._timer = None

    def resent(self) -> None:
        """Count that a query was lost with a connection."""
        self._meter.resent()

    # Health

    def failed(self) -> None:
        """It gave no usable answer to a query: begin with health checks."""
        self._meter.failed()
        self.check()

    def check(self) -> None:
        """Begin with health checks, unless they are going on: one after the other until one is answered."""
        if self._settings.max_fails and not self._checking:
            self._checking = True
            self._around.background(self._check())

    async def _check(self) -> None:
        """Whatever comes back is good (RFC 1035: there is a server), even if it is an error."""
        tcp = self._settings.force_tcp
        loop = asyncio.get_running_loop()
        try:
            while not self._closed:
                try:
                    now = loop.time()
                    await self._transfer(self._probe, tcp, now, now + CHECK_SECONDS)
                except UpstreamError as error:
                    self._failed(error)
                else:
                    break
                await asyncio.sleep(max(self._settings.health_interval, _SHORTEST_PAUSE))
        finally:
            self._checking = False
        if self.is_down:
            self._around.log.info(f"upstream {self.name} answers again")
        self.fails = 0
        self._stand()

    def _failed(self, error: UpstreamError) -> None:
        was_down = self.is_down
        self.fails += 1
        self._meter.check_failed()
        self._meter.failed()
        if self.is_down and not was_down:
            self._around.log.warning(f"upstream {self.name} is down: {error}", key=f"down {self.name}")
            self._stand()

    def _stand(self) -> None:
        if self._standing is not None:
            self._standing.set(down=self.is_down)

    async def close(self) -> None:
        """End all connections, and what waits on them."""
        self._closed = True
        if self._standing is not None:
            self._standing.leave()
        if self._streams is not None:
            self._streams.close()
        if self._datagrams is not None:
            self._datagrams.close()
        if self._https is not None:
            await self._https.close()
