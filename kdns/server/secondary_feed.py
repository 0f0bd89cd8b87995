"""The zones of a `secondary` directive: fetched from other servers, and kept up to date (RFC 1034 4.3.5, RFC 1996).

What waits for others is done in threads. Each transfer is one transaction of the store, with the time of the last
answer of a primary beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from kdns.corefile.config import ServerConfig
from kdns.errors import FormatError, StoreError
from kdns.observe.counters import Region
from kdns.observe.logs import Log
from kdns.plugins import secondary
from kdns.plugins.secondary import Copy
from kdns.server.zone_feed import ZonePublication
from kdns.wire import names, rr
from kdns.wire.rrset import RRset
from kdns.wire.tsig import Asker, Key
from kdns.zone import inbound, journal
from kdns.zone.inbound import Inbound, RcodeError
from kdns.zone.store import EXPIRED, SYNCED, Store, Transaction, Zone

TIMEOUT = 5.0
"""Seconds for a connection to be there, and between bytes."""
LONGEST = 600.0
"""Seconds for a transfer."""
FIRST_RETRIES = 0.25, 10.0
"""Seconds until a zone of which we have nothing is asked for again: twice as long each time, up to the second."""
SPACING = 0.1
"""Seconds between two times that primaries are asked, however many NOTIFYs there are."""
_THREADS = 4
_LEAST = 1.0
_MOST = 28 * 86400.0

Address = tuple[str, int]


@dataclass(slots=True)
class _State:
    """A zone. retry: seconds until the next try, as long as there is nothing. told: there was a NOTIFY; by: from whom.
    problem: what was said of it last."""

    retry: float = FIRST_RETRIES[0]
    told: asyncio.Event = field(default_factory=asyncio.Event)
    by: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """A zone as it is in the store.

    soa: None if there is nothing of it. heard: when a primary has answered last, in seconds since 1970.
    """

    zone: Zone
    soa: RRset | None
    heard: float | None


class SecondaryPublication(ZonePublication):
    """What a directive publishes."""

    def __init__(
        self,
        block: ServerConfig,
        copy: Copy,
        store: Store,
        log: Log,
        committed: Callable[[], None],
        refused: Callable[[], None],
    ) -> None:
        origin = f"transfers from {', '.join(host for host, _ in copy.primaries)}"
        super().__init__(secondary.NAME, block, copy.source(block), copy.zones, origin, store, log, committed, refused)

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return f"secondary {' '.join(self.names)}"

    def counts(self) -> dict[str, int]:
        """Nothing is counted."""
        return {}

    def look(self) -> None:
        """Note whether there is something to answer from, for all zones."""
        zones = self.zones().values()
        self.synced = bool(zones) and all(zone.state == SYNCED for zone in zones)

    def declare(self, origins: Iterable[bytes]) -> None:
        """Let these zones be there and no others, if without any data. Raises StoreError."""
        wanted = set(origins)

        def action(txn: Transaction) -> None:
            for origin in wanted:
                txn.add_zone(self.source, origin, given_serial=True)
            for zone in txn.zones():
                if zone.source == self.source and zone.origin not in wanted:
                    txn.drop_zone(zone)

        self._store.write(action)
        self.look()

    def read(self, origin: bytes) -> Known:
        """What there is of a zone."""
        key = self._heard_key(origin)

        def action(txn: Transaction) -> Known:
            zone = next(zone for zone in txn.zones() if (zone.source, zone.origin) == (self.source, origin))
            apex = txn.get(zone, origin) or ()
            heard = txn.get_meta(key)
            soa = next((rrset for rrset in apex if rrset.type == rr.SOA), None)
            return Known(zone, soa, float(heard) if heard is not None else None)

        return self._store.read(action)

    def take(self, origin: bytes, got: Inbound, now: float) -> None:
        """Write what a primary has given. Raises FormatError if it does not fit to what there is, and StoreError."""
        assert got.soa is not None

        def action(txn: Transaction) -> None:
            zone = txn.add_zone(self.source, origin, given_serial=True)
            if got.steps:
                there = {name: txn.get(zone, name) or () for name in inbound.touched(got.steps)}
                txn.change(zone, inbound.changed(origin, got.steps, there))
            elif not got.current:
                txn.replace(zone, got.rows())
            txn.set_state(zone, SYNCED)
            txn.put_meta(self._heard_key(origin), repr(now).encode())

        try:
            self._store.write(action)
        except StoreError:
            self._refused()
            raise
        self._committed()
        self.look()

    def expire(self, origin: bytes) -> None:
        """Serve a zone no more until there is an answer of a primary. Raises StoreError."""

        def action(txn: Transaction) -> None:
            for zone in txn.zones():
                if (zone.source, zone.origin) == (self.source, origin):
                    txn.set_state(zone, EXPIRED)

        self._store.write(action)
        self._committed()
        self.look()

    def _heard_key(self, origin: bytes) -> str:
        return f"heard {origin.hex()} {self.source}"


class SecondaryFeed:
    """One directive's zones. publication: where to."""

    startup_timeout = 0.0
    of_cluster: Literal[False] = False
    may_lack = True
    read_first = False

    def __init__(self, publication: SecondaryPublication, copy: Copy, key: Key | None, region: Region) -> None:
        """region: the supervisor's counters. Raises StoreError."""
        self.publication = publication
        self._copy = copy
        self._key = key
        self._region = region
        self._states = {origin: _State() for origin in copy.origins()}
        self._threads: ThreadPoolExecutor | None = None
        self._connections: set[socket.socket] = set()
        self._stopped = False
        publication.declare(self._states)

    @property
    def problems(self) -> int:
        """Zones that could not be fetched when that was tried last."""
        return sum(bool(state.problem) for state in self._states.values())

    def age(self) -> float | None:
        """How old a copy may be is its own business."""
        return None

    async def load(self) -> None:
        """Nobody waits for other servers."""

    async def loaded(self) -> None:
        """Nobody has to wait."""

    async def stop(self) -> None:
        """End what runs."""
        self._stopped = True
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def notified(self, origin: bytes, host: str) -> None:
        """A primary says that a zone has changed."""
        state = self._states.get(origin)
        if state is not None and any(host == known for known, _ in self._copy.primaries):
            state.by = host
            state.told.set()

    async def follow(self) -> None:
        """Keep all zones up to date."""
        self._stopped = False
        self._threads = ThreadPoolExecutor(_THREADS, "kdns-secondary")
        try:
            async with asyncio.TaskGroup() as group:
                for origin in self._states:
                    group.create_task(self._keep(origin))
        finally:
            await self.stop()
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _keep(self, origin: bytes) -> None:
        """Keep a zone up to date."""
        state = self._states[origin]
        loop = asyncio.get_running_loop()
        while True:
            by, state.by = state.by, ""
            state.told.clear()
            try:
                pause = await loop.run_in_executor(self._threads, self._refresh, origin, by)
            except StoreError as error:
                self.publication.log.error(f"{error}; zones stay as they are until it can be written", key="store")
                pause = _LEAST
            await asyncio.sleep(SPACING)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, pause - SPACING)):
                    await state.told.wait()

    # In a thread

    def _refresh(self, origin: bytes, by: str) -> float:
        """Ask the primaries, the one that has sent a NOTIFY first; the seconds until they are asked again."""
        state = self._states[origin]
        known = self.publication.read(origin)
        self._expire(origin, known)
        problems = []
        for address in sorted(self._copy.primaries, key=lambda address: address[0] != by):
            if self._stopped:
                return _LEAST
            try:
                self._fetch(origin, known, address)
                break
            except (FormatError, OSError, struct.error) as error:
                problems.append(f"{_text(address)}: {_reason(error)}")
        else:
            return self._failed(origin, known, "; ".join(problems))
        if state.problem:
            self.publication.log.info(f"zone {names.to_text(origin)}: can be fetched again")
        state.problem, state.retry = "", FIRST_RETRIES[0]
        known = self.publication.read(origin)
        refresh, _, expire = inbound.soa_numbers(known.soa) if known.soa is not None else (0, 0, 0)
        return _bounded(min(refresh, expire) * random.uniform(0.95, 1.0))

    def _failed(self, origin: bytes, known: Known, problem: str) -> float:
        state = self._states[origin]
        self._count(origin, "failed")
        if problem != state.problem and not self._stopped:
            self.publication.log.error(f"zone {names.to_text(origin)}: {problem}; it stays as it was")
        state.problem = problem
        if known.soa is None:
            pause, state.retry = state.retry, min(state.retry * 2, FIRST_RETRIES[1])
            return pause
        _, retry, expire = inbound.soa_numbers(known.soa)
        left = (known.heard or 0.0) + expire - time.time()
        return _bounded(min(retry, left) if left > 0 else retry)

    def _expire(self, origin: bytes, known: Known) -> None:
        """Serve a zone no more if no primary has answered for too long."""
        expired = known.zone.state == EXPIRED
        if known.soa is not None and not expired:
            expire = inbound.soa_numbers(known.soa)[2]
            if time.time() >= (known.heard or 0.0) + expire:
                self.publication.log.warning(
                    f"zone {names.to_text(origin)}: no primary has answered for {expire} s, and it is served no more"
                )
                self.publication.expire(origin)
                expired = True
        self._gauge(origin, expired)

    def _fetch(self, origin: bytes, known: Known, address: Address) -> None:
        """Bring a zone up to date from a primary. Raises FormatError, OSError, StoreError."""
        if known.soa is None:
            self._take(origin, self._transfer(origin, None, address), address, "axfr")
            return
        try:
            got = self._transfer(origin, known.soa.rdatas[0], address)
            if got.current or got.steps:
                self._take(origin, got, address, "current" if got.current else "ixfr")
                return
        except FormatError as error:
            if not isinstance(error, RcodeError):
                text = f"zone {names.to_text(origin)}: {_text(address)}: {error}; all of it is fetched"
                self.publication.log.warning(text, key=f"ixfr {origin!r}")
            got = self._transfer(origin, None, address)
        self._take(origin, got, address, "axfr")

    def _take(self, origin: bytes, got: Inbound, address: Address, result: str) -> None:
        if self._stopped:
            raise TimeoutError
        self.publication.take(origin, got, time.time())
        self._count(origin, result)
        self._gauge(origin, expired=False)
        if got.current or got.soa is None:
            return
        what = f"{got.count} records" if result == "axfr" else "what has changed"
        left = f"; {got.outside} records are not in it and were left out" if got.outside else ""
        serial = journal.serial_of(got.soa)
        self.publication.log.info(f"zone {names.to_text(origin)}: serial {serial}, {what} from {_text(address)}{left}")

    def _transfer(self, origin: bytes, have: bytes | None, address: Address) -> Inbound:
        """Transfer a zone if there is a newer one than we have (the rdata of its SOA). Raises FormatError, OSError."""
        until = time.monotonic() + LONGEST
        serial = int.from_bytes(have[-20:-16]) if have is not None else None
        with self._connect(address) as connection:
            if serial is not None:
                theirs = _one(self._ask(connection, origin, rr.SOA, None, until), origin)
                if not journal.rises(serial, theirs):
                    found = Inbound(origin, serial)
                    found.current = found.done = True
                    found.soa = journal.Row(origin, rr.SOA, 0, have or b"")
                    return found
            got = Inbound(origin, serial)
            kind = rr.AXFR if serial is None else rr.IXFR
            for data, at in self._ask(connection, origin, kind, have, until, got):
                got.take(data, at)
            return got

    @contextlib.contextmanager
    def _connect(self, address: Address) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as connection:
            self._connections.add(connection)
            try:
                connection.settimeout(TIMEOUT)
                connection.connect(address)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield connection
            finally:
                self._connections.discard(connection)

    def _ask(
        self,
        connection: socket.socket,
        origin: bytes,
        rtype: int,
        have: bytes | None,
        until: float,
        got: Inbound | None = None,
    ) -> Iterator[tuple[bytes, int]]:
        """Send a query; its responses, one or those of a transfer, each with the offset of its records.

        The last one is signed, if we sign. Raises FormatError, OSError.
        """
        ident = random.getrandbits(16)
        data = inbound.query(ident, origin, rtype, have)
        asker = Asker(self._key) if self._key is not None else None
        if asker is not None:
            data = asker.sign(data, time.time())
        connection.sendall(struct.pack("!H", len(data)) + data)
        signed = True
        while True:
            if self._stopped or time.monotonic() > until:
                raise TimeoutError("it takes too long")
            size = struct.unpack("!H", _exactly(connection, 2, until))[0]
            data = _exactly(connection, size, until)
            at = inbound.records_at(data, ident, origin, rtype)
            if asker is not None:
                signed = asker.check(data, inbound.question_end(data), time.time())
            yield data, at
            if got is None or got.done:
                break
        if not signed:
            raise FormatError("the last response is not signed")

    def _count(self, origin: bytes, result: str) -> None:
        name = "kdns_secondary_transfers_total"
        self._region.count(("count", name, "zone", names.to_text(origin), "result", result))

    def _gauge(self, origin: bytes, expired: bool) -> None:
        self._region.set(("gauge", "kdns_secondary_expired", "zone", names.to_text(origin)), int(expired))


def _one(responses: Iterator[tuple[bytes, int]], origin: bytes) -> int:
    """The serial in a response to a query for an SOA record. Raises FormatError."""
    serial = None
    for data, at in responses:
        for row in inbound.answers(data, at):
            if row.type == rr.SOA and row.owner == origin:
                serial = journal.serial_of(row)
    if serial is None:
        raise FormatError("it has no SOA record for the zone")
    return serial


def _exactly(connection: socket.socket, size: int, until: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        if time.monotonic() > until:
            raise TimeoutError("it takes too long")
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("it has closed the connection")
        data += part
    return bytes(data)


def _bounded(seconds: float) -> float:
    return min(max(seconds, _LEAST), _MOST)


def _text(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    return (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
