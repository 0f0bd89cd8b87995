"""Queries over UDP: each from a socket of its own, so that port and ID are both new and hard to guess (RFC 5452).

The socket is not connected: what comes from elsewhere is dropped and counted here. IP_RECVERR makes the kernel tell of
a closed port all the same (ip(7)).
"""

from __future__ import annotations

import asyncio
import random
import resource
import socket

from kdns.errors import ConnectionLostError, UpstreamError
from kdns.upstream.ask import Ask
from kdns.upstream.faults import NOT_USED, TIMEOUT, told
from kdns.upstream.meters import Meter
from kdns.upstream.settings import Settings, Target
from kdns.upstream.steps import Wait, in_task

MAX_SOCKETS = 2000
"""Queries in flight; further ones wait. A process that may have few descriptors gets half of them for this."""
_TURN = 32
_LONGEST = 65535
_RECVERR = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
_ids = random.SystemRandom()  # the kernel's generator: from IDs seen before, nobody can tell the next one


class Datagrams:
    """UDP to one address. To be used in the event loop only."""

    def __init__(self, target: Target, settings: Settings, meter: Meter) -> None:
        self.meter = meter
        _, self._misses = meter.connections("udp")
        self.source = settings.source
        family, _, _, _, address = socket.getaddrinfo(
            target.host, target.port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
        )[0]
        self.family = family
        self.peer = address
        self._open: set[_Exchange] = set()
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = min(MAX_SOCKETS, descriptors // 2) if descriptors > 0 else MAX_SOCKETS
        self._room: asyncio.Event = asyncio.Event()

    async def ask(self, ask: Ask, until: float) -> bytes:
        """The answer, from its ID on. until: of the event loop's clock; noticed by `tick`. Raises UpstreamError."""
        while len(self._open) >= self._most:
            await in_task()
            self._room.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._room.wait()
            except TimeoutError:
                raise UpstreamError(f"{self._most} queries over UDP are in flight") from None
        self.meter.count(self._misses)
        exchange = _Exchange(self, ask, until)
        self._open.add(exchange)
        try:
            exchange.send()
            answer: bytes = await exchange
        except OSError as error:
            raise UpstreamError(f"UDP: {told(error)}") from None
        finally:
            exchange.close()
            self._open.discard(exchange)
            if not self._room.is_set():
                self._room.set()
        return answer

    def tick(self, now: float) -> bool:
        """End waits whose time is over; False if no query is in flight."""
        for exchange in self._open:
            if exchange.until <= now and not exchange.is_done:
                exchange.fail(UpstreamError(f"no answer within {now - exchange.sent:.1f} s: {TIMEOUT}"))
        return bool(self._open)

    def close(self) -> None:
        """End all waits."""
        for exchange in self._open:
            if not exchange.is_done:
                exchange.fail(ConnectionLostError(NOT_USED))


class _Exchange(Wait):
    """One query and its socket; what is waited for is the answer."""

    __slots__ = ("_ask", "_ident", "_loop", "_owner", "_socket", "sent", "until")

    def __init__(self, owner: Datagrams, ask: Ask, until: float) -> None:
        super().__init__()
        self._owner = owner
        self._ask = ask
        self._loop = asyncio.get_running_loop()
        self._ident = _ids.getrandbits(16).to_bytes(2, "big")
        self._socket: socket.socket | None = None
        self.sent = self._loop.time()
        self.until = until

    def send(self) -> None:
        """Open the socket and send. Raises OSError."""
        owner = self._owner
        sock = self._socket = socket.socket(owner.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(*_RECVERR[owner.family], 1)
        if owner.source:
            sock.bind((owner.source, 0))
        sock.sendto(self._ident + self._ask.body, owner.peer)
        self._loop.add_reader(sock.fileno(), self._readable, sock)

    def _readable(self, sock: socket.socket) -> None:
        for _ in range(_TURN):
            if self.is_done:
                return
            try:
                data, peer = sock.recvfrom(_LONGEST)
            except BlockingIOError:
                return
            except OSError as error:
                self.fail(UpstreamError(f"UDP: {told(error)}"))
                return
            wrong = self._wrong(data, peer)
            if wrong:
                self._owner.meter.discarded(wrong, data)
            else:
                self.set(data)

    def _wrong(self, data: bytes, peer: tuple[str | int, ...]) -> str:
        """Why a datagram is not the answer, "" if it is."""
        if peer != self._owner.peer:
            return "peer"
        return "id" if data[:2] != self._ident else self._ask.mismatch(data)

    def close(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
