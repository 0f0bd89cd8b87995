"""Who follows our zones (`transfer`): which zones have a journal for them, and telling them of changes (RFC 1996)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kdns.corefile.config import ServerConfig
from kdns.observe.counters import Region
from kdns.plugins import kubernetes, transfer, zones
from kdns.plugins.transfer import Rule
from kdns.wire import message, names
from kdns.zone import sources
from kdns.zone.store import SYNCED, Zone

SPACING = 0.25
"""Seconds between two NOTIFYs to an address for a zone, as long as the zone changes."""
BACK_OFF = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
"""Seconds until an address that has not answered is told again; the last one from then on."""
_QUESTION_AT = 12

Address = tuple[str, int]


class Followed:
    """The zones of server blocks that have `transfer`, and the directive for each of them."""

    def __init__(self, blocks: Iterable[ServerConfig]) -> None:
        self._rules: dict[str, list[names.Zones[Rule]]] = {}
        for block in blocks:
            options = block.plugins.get(transfer.NAME)
            if options is None:
                continue
            by_zone = options.by_zone()
            for source in sources_of(block):
                self._rules.setdefault(source, []).append(by_zone)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def has(self, zone: Zone) -> bool:
        """Whether anybody may have a copy of a zone."""
        return any(True for _ in self._of(zone))

    def addresses(self, zone: Zone) -> set[Address]:
        """Who is to be told when a zone has changed."""
        return {address for rule in self._of(zone) for address in rule.to}

    def _of(self, zone: Zone) -> Iterable[Rule]:
        if sources.what(zone.source) == sources.CLIENTS:
            return
        for by_zone in self._rules.get(sources.whose(zone.source), ()):
            rule = by_zone.find(zone.origin)
            if rule is not None:
                yield rule


def sources_of(block: ServerConfig) -> list[str]:
    """What the data of a server block's zones is kept under."""
    found = []
    for name, options in block.plugins.items():
        if name == kubernetes.NAME:
            found.append(zones.source_id(name, block, options.zones))
        if hasattr(options, "sources"):
            found += [source.id for source in options.sources(block)]
    return found


@dataclass(slots=True)
class _Told:
    """What an address knows of a zone.

    serial: that of the zone. due: when it is told of it, None if it has answered. sent: when it was told last.
    of_serial: what the serial was then. tries: without an answer. ident: of the last NOTIFY.
    """

    serial: int
    due: float | None
    sent: float = 0.0
    of_serial: int = -1
    tries: int = 0
    ident: int = -1


class Notifier:
    """Tells followers which zones have changed, in the event loop of the supervisor."""

    def __init__(self, there: Callable[[], Iterable[Zone]], region: Region) -> None:
        """there: the zones in the store, as of the last commit."""
        self.followed = Followed(())
        self._zones = there
        self._region = region
        self._told: dict[tuple[bytes, Address], _Told] = {}
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sockets: dict[int, socket.socket] = {}
        self._seen: Iterable[Zone] = ()

    def follow(self, followed: Followed) -> None:
        """Go by another configuration."""
        self.followed = followed
        self._seen = ()
        self._changed.set()

    def committed(self) -> None:
        """Something in the store has changed. May be called in any thread."""
        loop = self._loop
        if self.followed and loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._changed.set)

    async def run(self) -> None:
        """Tell, for ever."""
        self._loop = loop = asyncio.get_running_loop()
        try:
            while True:
                self._changed.clear()
                now = loop.time()
                self._look(now)
                due = self._tell(now)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if due is None else max(0.0, due - loop.time())):
                        await self._changed.wait()
        finally:
            self._loop = None
            for sock in self._sockets.values():
                loop.remove_reader(sock)
                sock.close()
            self._sockets.clear()

    def _look(self, now: float) -> None:
        """Note who has to be told what."""
        there = self._zones()
        if there is self._seen:
            return
        self._seen = there
        wanted: dict[tuple[bytes, Address], int] = {}
        for zone in there:
            if zone.state == SYNCED:
                for address in self.followed.addresses(zone):
                    wanted.setdefault((zone.origin, address), zone.serial)
        for key in self._told.keys() - wanted.keys():
            del self._told[key]
        for key, serial in wanted.items():
            told = self._told.get(key)
            if told is None:
                self._told[key] = _Told(serial, now)
            elif told.serial != serial:
                told.serial = serial
                told.tries = 0
                told.due = max(now, told.sent + SPACING)

    def _tell(self, now: float) -> float | None:
        """Send what is due; returns when there is more to do."""
        for (origin, address), told in self._told.items():
            if told.due is not None and told.due <= now:
                told.ident = random.getrandbits(16)
                told.sent = now
                told.of_serial = told.serial
                told.due = now + BACK_OFF[min(told.tries, len(BACK_OFF) - 1)]
                told.tries += 1
                self._send(message.notify(told.ident, origin), address)
        return min((told.due for told in self._told.values() if told.due is not None), default=None)

    def _send(self, data: bytes, address: Address) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            sock = self._sockets.get(family) or self._open(family)
            sock.sendto(data, address)
        except OSError:
            return
        self._region.count(("count", "kdns_notifies_total", "result", "sent"))

    def _open(self, family: int) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        self._sockets[family] = sock
        asyncio.get_running_loop().add_reader(sock, self._read, sock)
        return sock

    def _read(self, sock: socket.socket) -> None:
        """Take answers."""
        for _ in range(100):
            try:
                data, address = sock.recvfrom(4096)
            except OSError:  # nothing more, or nobody listens there
                return
            self._answered(data, (address[0].partition("%")[0], address[1]))

    def _answered(self, data: bytes, address: Address) -> None:
        """Whatever is answered, it was heard (RFC 1996 3.6 and 4.8)."""
        if len(data) <= _QUESTION_AT or not data[2] & 0x80:
            return
        ident = int.from_bytes(data[:2])
        for (origin, known), told in self._told.items():
            if known != address or told.ident != ident:
                continue
            if data[_QUESTION_AT : _QUESTION_AT + len(origin)].lower() == origin:
                told.ident = -1
                told.tries = 0
                if told.of_serial == told.serial:
                    told.due = None
                self._region.count(("count", "kdns_notifies_total", "result", "answered"))
                return
