"""The upstreams of one `forward`: which is asked, which next, and when to give up."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from time import monotonic

from kdns.errors import ConnectionLostError, UpstreamError
from kdns.upstream.ask import Ask
from kdns.upstream.resolve import FIRST_PAUSE, resolve, system_resolvers
from kdns.upstream.settings import Settings, Target
from kdns.upstream.upstream import Surroundings, Upstream
from kdns.wire.relay import Relay

TOTAL_SECONDS = 4.5
"""No upstream is asked later than this after the query came: clients ask again after 5 seconds (glibc's default)."""
_PAUSE = 0.05


class Group:
    """Asks one of several upstreams, and another one if that fails. To be used in the event loop only.

    Upstreams that are given by name are looked up in the background; the addresses of each stay until there are others.
    """

    __slots__ = (
        "_addresses", "_around", "_failover", "_known", "_max_attempts", "_patience", "_resolvers", "_settings",
        "_targets", "_turn", "_unresolved", "upstreams",
    )  # fmt: skip

    def __init__(self, targets: tuple[Target, ...], settings: Settings, around: Surroundings) -> None:
        self._settings = settings
        self._patience = max(TOTAL_SECONDS, settings.read_timeout)
        self._max_attempts = settings.max_attempts
        self._failover = settings.failover
        self._around = around
        self._targets = targets
        self._known: dict[Target, Upstream] = {}
        self._addresses: dict[Target, tuple[str, ...]] = {}
        self._unresolved: dict[Target, str] = {target: "not looked up yet" for target in targets if target.is_name}
        self._turn = 0
        self._resolvers: list[Upstream] | None = None
        self.upstreams: list[Upstream] = []
        self._arrange()
        around.background(self._live())

    async def ask(self, ask: Ask, tcp: bool, begun: float, asked: Callable[[str], None] | None = None) -> Relay:
        """The first answer with which the query need not go to another upstream.

        tcp: ask over TCP. begun: when the query came, of the event loop's clock. asked: is told each upstream that is
        asked.

        Upstreams that are down are left out; if all are, a random one is asked, once. Raises UpstreamError, which says
        what the last upstream did.
        """
        upstreams = self._order()
        if not upstreams:
            raise UpstreamError("; ".join(f"{target.host}: {why}" for target, why in self._unresolved.items()))
        give_up = begun + self._patience
        most = 2 * len(upstreams) if self._max_attempts is None else self._max_attempts
        failed = passed = 0
        lost = False
        last: Relay | None = None
        why = "every upstream is down"
        for upstream in self._tries(upstreams):
            if asked is not None:
                asked(upstream.name)
            try:
                last = await upstream.exchange(ask, tcp, give_up)
            except ConnectionLostError as error:
                why = f"{upstream.name}: {error}"
                upstream.resent()
                if not lost:
                    lost = True
                    upstream.check()
                    continue
            except UpstreamError as error:
                why = f"{upstream.name}: {error}"
            else:
                passed += 1
                if last.rcode not in self._failover or passed >= len(upstreams):
                    return last
                continue
            upstream.failed()
            failed += 1
            if failed == most or monotonic() >= give_up:
                break
            if not most:
                await asyncio.sleep(_PAUSE)
        if last is not None:
            return last
        raise UpstreamError(why)

    def _tries(self, upstreams: list[Upstream]) -> Iterator[Upstream]:
        """Whom to ask, for ever; if all are down, a random one as the last one, or with `failfast` nobody."""
        known = self.upstreams
        while upstreams:
            down = 0
            for upstream in upstreams:
                if not upstream.is_down:
                    yield upstream
                    continue
                down += 1
            if down == len(upstreams):
                self._around.region.count(("count", "coredns_forward_healthcheck_broken_total"))
                if not self._settings.failfast:
                    yield random.choice(upstreams)
                return
            if known is not self.upstreams:  # addresses of names have changed
                known, upstreams = self.upstreams, self._order()

    def _order(self) -> list[Upstream]:
        """The upstreams, those to be asked first in front."""
        upstreams = self.upstreams
        count = len(upstreams)
        if count < 2 or self._settings.policy == "sequential":
            return upstreams
        if self._settings.policy == "random":
            return random.sample(upstreams, count)
        self._turn = (self._turn + 1) % count
        return [upstreams[self._turn], *upstreams[: self._turn], *upstreams[self._turn + 1 :]]

    # Names of upstreams

    def _arrange(self) -> list[Upstream]:
        """Take the addresses that are known now, each once, in the order of the configuration; returns what is left."""
        wanted: dict[tuple[str, int], Target] = {}
        for target in self._targets:
            for host in self._addresses.get(target, ()) if target.is_name else (target.host,):
                name = target.server_name or (target.host if target.is_name and target.transport != "dns" else "")
                wanted.setdefault((host, target.port), Target(target.transport, host, target.port, name))
        before = self._known
        self._known = {
            target: before.get(target) or Upstream(target, self._settings, self._around) for target in wanted.values()
        }
        self.upstreams = list(self._known.values())
        return [upstream for target, upstream in before.items() if target not in self._known]

    async def _live(self) -> None:
        """Look names up again and again; at the end close all connections."""
        named = [target for target in self._targets if target.is_name]
        try:
            await asyncio.gather(*(self._follow(target) for target in named), asyncio.Event().wait())
        finally:
            for upstream in [*self.upstreams, *(self._resolvers or ())]:
                await upstream.close()

    async def _follow(self, target: Target) -> None:
        """Keep the addresses of one name."""
        pause = FIRST_PAUSE
        while True:
            try:
                addresses, ttl = await resolve(target.host, self._resolving())
            except UpstreamError as error:
                if target not in self._addresses:
                    self._unresolved[target] = str(error)
                text = f"upstream {target.host} cannot be looked up: {error}"
                self._around.log.warning(text, key=f"resolve {target.host}")
                pause = min(2 * pause, 5.0)
            else:
                self._unresolved.pop(target, None)
                if set(addresses) != set(self._addresses.get(target, ())):
                    self._addresses[target] = addresses
                    for upstream in self._arrange():
                        await upstream.close()
                pause = ttl
            await asyncio.sleep(pause)

    def _resolving(self) -> list[Upstream]:
        """Those who are asked for the addresses; without `resolver` those of the system, as they are now."""
        if self._resolvers is None or not self._settings.resolvers:
            targets = self._settings.resolvers or system_resolvers(self._settings.resolv_conf)
            known = {upstream.target: upstream for upstream in self._resolvers or ()}
            plain = Settings(source=self._settings.source, max_fails=0)
            self._resolvers = [
                known.get(target) or Upstream(target, plain, self._around, shown=False) for target in targets
            ]
        return self._resolvers
