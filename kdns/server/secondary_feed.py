"""The zones of a `secondary` directive: fetched from other servers, and kept up to date (RFC 1034 4.3.5, RFC 1996).

A primary that lets us follow zones (`kdns.wire.following`) is asked about all of them on one connection, which is kept;
others on connections that end with the answer. Each transfer is one transaction of the store, with its lineage and the
time of the last answer of a primary beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeVar

from kdns.corefile.config import ServerConfig
from kdns.errors import FormatError, StoreError
from kdns.observe.counters import Region
from kdns.observe.logs import REPEAT_SECONDS, Log
from kdns.plugins import secondary
from kdns.plugins.secondary import Copy
from kdns.server import memory
from kdns.server.cgroups import memory_limit
from kdns.server.primary import TIMEOUT, Address, Primary
from kdns.server.zone_feed import ZonePublication
from kdns.wire import names, rr
from kdns.wire.rrset import RRset
from kdns.wire.tsig import Key
from kdns.zone import inbound, journal
from kdns.zone.inbound import BehindError, Have, Inbound, LineageError, RcodeError, TooLargeError
from kdns.zone.store import EXPIRED, SYNCED, Store, Transaction, Zone

PATIENCE = 35.0
"""Seconds for a primary that nobody else stands in for to begin a transfer: a kdns lets many others have theirs first
for up to 30 s."""
FIRST_RETRIES = 0.25, 10.0
"""Seconds until a zone of which we have nothing, or which was followed, is asked for again: twice as long each time, up
to the second. One that is not given any more is so too when the connection has ended on which it was asked for: it may
be that of another configuration then."""
TOO_LARGE_RETRY = 600.0
"""Seconds, at most, until a zone that there is no room for is asked for again: each time a lot is sent for nothing."""
SPREAD = 1.0
"""Seconds within which those whose connection has ended together begin to come back."""
LASTING = 10.0
"""Seconds after which a connection has lasted long enough to begin with short pauses again."""
SPACING = 0.1
"""Seconds between two times that primaries are asked, however many NOTIFYs there are."""
FOLLOWED_SPACING = 0.02
"""The same for a zone that is followed, from the one question to the next."""
WHOLES, PART = 2, 3
"""After so many times that all of a zone came, it is asked for when so many times of what that took have passed."""
NOTED = 60.0
"""Seconds after which it is written down that a primary has answered, if nothing else is written."""
_SAID = 50
"""Messages in a minute, and one more for each zone."""
_AT_ONCE = 4
"""Zones that are transferred at a time, of those that are followed and of the others: who does not answer is not in the
way of what changes. One of all, where there is a limit of memory: so each has all that there is for it."""
_LEAST = 1.0
OLDER = 600.0
"""Seconds without an answer of a primary after which the copy of another one is taken that is behind ours."""
LEAST_EXPIRE = 2
"""Seconds for which a copy lasts, whatever its SOA record says: longer than until primaries are asked again."""
_MOST = 28 * 86400.0

Result = TypeVar("Result")


@dataclass(slots=True)
class _State:
    """A zone. soa: None if there is nothing of it. lineage, revision: of the copy, empty and 0 for none. heard: when a
    primary has answered last, in seconds since 1970, None for never; noted: the same as far as the store knows.

    wholes: how often all of it came, one time after the other. retry: seconds until the next try, as long as there is
    nothing. told: there is a reason to ask; by: a primary that has sent a NOTIFY. problem: what was said of it last.
    on: the connection on which it is followed.
    """

    origin: bytes
    soa: RRset | None = None
    lineage: bytes = b""
    revision: int = 0
    heard: float | None = None
    noted: float = 0.0
    expired: bool = False
    wholes: int = 0
    retry: float = FIRST_RETRIES[0]
    told: asyncio.Event = field(default_factory=asyncio.Event)
    by: str = ""
    problem: str = ""
    on: Primary | None = None

    @property
    def have(self) -> Have | None:
        """What there is, to be told to a primary: with its revision, unless it is so old that any other one will do."""
        age = self.age()
        if self.soa is None:
            return None
        lasts = age is not None and age < OLDER and not self.expired
        return Have(self.soa.rdatas[0], self.lineage, self.revision if lasts else 0)

    def last_heard(self) -> float | None:
        """When it was last known to be what a primary has."""
        if self.heard is None or self.on is None:
            return self.heard
        return max(self.heard, self.on.heard)

    def leave(self) -> None:
        """It is followed no more: from now on it gets old."""
        if self.on is not None:
            self.on.zones.pop(self.origin, None)
            self.heard, self.on = self.last_heard(), None

    def age(self) -> float | None:
        """Seconds since then."""
        heard = self.last_heard()
        return None if heard is None or self.soa is None else max(0.0, time.time() - heard)


@dataclass(slots=True)
class _Return:
    """When to connect again to what was followed, for all zones together. Times are those of the event loop."""

    due: float = 0.0
    pause: float = FIRST_RETRIES[0]

    def lost(self, now: float, lasted: float) -> None:
        """A connection has ended."""
        if lasted >= LASTING:
            self.due, self.pause = now + random.uniform(0, SPREAD), FIRST_RETRIES[0]
        else:
            self.failed(now)

    def failed(self, now: float) -> None:
        """There is none to be had. Zones that find this out together count once."""
        if now >= self.due:
            self.due = now + self.pause * random.uniform(0.5, 1.0)
            self.pause = min(self.pause * 2, FIRST_RETRIES[1])


class _Said:
    """How many messages there were in the last minute."""

    def __init__(self, most: int) -> None:
        self._times: deque[float] = deque(maxlen=most)

    def is_enough(self, now: float) -> bool:
        """Whether there were as many as there may be; else there is one more. now: of the event loop."""
        if len(self._times) == self._times.maxlen and now - self._times[0] < REPEAT_SECONDS:
            return True
        self._times.append(now)
        return False


@dataclass(frozen=True, slots=True)
class Known:
    """A zone as it is in the store.

    soa: None if there is nothing of it. heard: when a primary has answered last, in seconds since 1970. revision: see
    `Transaction.revision`.
    """

    zone: Zone
    soa: RRset | None
    heard: float | None
    revision: int


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
        zones = [zone for zone in self._store.zones if zone.source == self.source]
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
                    for what in ("heard", "revision"):
                        txn.delete_meta(self._key(what, zone.origin))

        self._store.write(action)
        self.look()

    def read(self, origin: bytes) -> Known:
        """What there is of a zone."""

        def action(txn: Transaction) -> Known:
            zone = next(zone for zone in txn.zones() if (zone.source, zone.origin) == (self.source, origin))
            apex = txn.get(zone, origin) or ()
            heard = txn.get_meta(self._key("heard", origin))
            soa = next((rrset for rrset in apex if rrset.type == rr.SOA), None)
            return Known(zone, soa, float(heard) if heard is not None else None, txn.revision(zone))

        return self._store.read(action)

    def take(self, origin: bytes, got: Inbound, lineage: bytes, revision: int, now: float) -> None:
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
            txn.put_meta(self._key("heard", origin), repr(now).encode())
            txn.set_lineage(zone, lineage)
            txn.set_revision(revision, self.source, origin)

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

    def _key(self, what: str, origin: bytes) -> str:
        return f"{what} {origin.hex()} {self.source}"


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
        self._states = {origin: _State(origin) for origin in copy.origins()}
        limit = memory_limit()
        self._turns = asyncio.Semaphore(_AT_ONCE if limit is None else 1)
        self._followed_turns = asyncio.Semaphore(_AT_ONCE) if limit is None else self._turns
        self._room = memory.arriving(limit, inbound.MOST_MEMORY)
        self._primaries: dict[Address, Primary] = {}
        self._follows: dict[Address, bool] = {}
        self._bare: set[Address] = set()
        self._return = _Return()
        self._said = _Said(_SAID + len(self._states))
        publication.declare(self._states)

    @property
    def problems(self) -> int:
        """Zones that could not be fetched when that was tried last."""
        return sum(bool(state.problem) for state in self._states.values())

    def age(self) -> float | None:
        """How old a copy may be is its own business."""
        return None

    def copies(self) -> dict[str, float]:
        """Seconds since a primary was last heard about each zone of which there is a copy. In any thread."""
        return {names.to_text(state.origin): age for state in self._states.values() if (age := state.age()) is not None}

    def followed(self) -> float | None:
        """The same for the oldest copy of those that were followed; None without any."""
        return max((age for state in self._states.values() if state.lineage and (age := state.age())), default=None)

    async def load(self) -> None:
        """Nobody waits for other servers."""

    async def loaded(self) -> None:
        """Nobody has to wait."""

    async def stop(self) -> None:
        """End what runs."""
        for primary in list(self._primaries.values()):
            primary.zones.clear()  # none of them is to be followed again
            primary.refused.clear()
            primary.close()

    def notified(self, origin: bytes, host: str) -> None:
        """A primary says that a zone has changed."""
        state = self._states.get(origin)
        if state is not None and any(host == known for known, _ in self._copy.primaries):
            state.by = host
            state.told.set()

    async def follow(self) -> None:
        """Keep all zones up to date."""
        try:
            async with asyncio.TaskGroup() as group:
                for state in self._states.values():
                    group.create_task(self._keep(state))
        finally:
            await self.stop()

    async def _keep(self, state: _State) -> None:
        """Keep a zone up to date."""
        loop = asyncio.get_running_loop()
        await self._recall(state)
        while True:
            if state.lineage and state.on is None:
                await asyncio.sleep(self._return.due - loop.time())
            by, state.by = state.by, ""
            state.told.clear()
            started = loop.time()
            try:
                pause = await self._refresh(state, by)
            except StoreError as error:
                self.publication.log.error(f"{error}; zones stay as they are until it can be written", key="store")
                state.on, pause = None, _LEAST
            took = loop.time() - started
            spacing = FOLLOWED_SPACING - took if state.on is not None else SPACING
            if state.wholes > WHOLES:
                spacing = max(spacing, took * PART)
            await asyncio.sleep(spacing)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, pause - max(0.0, spacing))):
                    await state.told.wait()

    async def _recall(self, state: _State) -> None:
        """Look up what there is of a zone."""
        while True:
            try:
                known = await _in_thread(partial(self.publication.read, state.origin))
                break
            except StoreError as error:
                self.publication.log.error(str(error), key="store")
                await asyncio.sleep(_LEAST)
        state.on, state.soa, state.lineage, state.heard = None, known.soa, known.zone.lineage, known.heard
        state.revision = known.revision
        state.noted = known.heard or 0.0
        state.expired = known.zone.state == EXPIRED

    async def _refresh(self, state: _State, by: str) -> float:
        """Ask the primaries, the one that has sent a NOTIFY first; the seconds until they are asked again."""
        await self._expire(state)
        problems = []
        large = refused = False
        for address in self._order(state, by):
            try:
                async with self._turns if state.on is None else self._followed_turns:
                    await self._fetch(state, address)
                break
            except (FormatError, OSError, struct.error) as error:
                if state.on is not None and state.on.address == address:
                    state.leave()  # others may be followed there on and on, and this one gets old all the same
                problems.append(f"{_text(address)}: {_reason(error)}")
                large = large or isinstance(error, TooLargeError)
                refused = refused or isinstance(error, RcodeError)
        else:
            pause = self._failed(state, "; ".join(problems), refused=refused)
            return await self._leave_alone(state, pause) if large else pause
        if state.problem:
            self._say(self.publication.log.info, f"zone {names.to_text(state.origin)}: can be fetched again")
        state.problem, state.retry = "", FIRST_RETRIES[0]
        refresh, _, expire = inbound.soa_numbers(state.soa) if state.soa is not None else (0, 0, 0)
        return _bounded(min(refresh, expire) * random.uniform(0.95, 1.0))

    async def _leave_alone(self, state: _State, pause: float) -> float:
        """There is no room for a zone: what we have of it only gets old; the seconds until it is asked for again."""
        if self._copy.fallback and state.soa is not None and not state.expired:
            await self._withdraw(state, "there is no room for what it is now")
            self._gauge(state)
        return max(pause, random.uniform(0.5, 1.0) * TOO_LARGE_RETRY)

    def _order(self, state: _State, by: str) -> list[Address]:
        """The primaries, those that are more likely to have something first."""
        on = state.on.address if state.on is not None else None
        return sorted(self._copy.primaries, key=lambda address: (address != on, address[0] != by))

    def _failed(self, state: _State, problem: str, *, refused: bool) -> float:
        """Say so; the seconds until it is tried again. refused: a primary has answered that it does not give it."""
        self._count(state.origin, "failed")
        if problem != state.problem:
            text = f"zone {names.to_text(state.origin)}: {problem}; it stays as it was"
            self._say(self.publication.log.error, text)
        state.problem = problem
        if state.lineage and not refused:
            now = asyncio.get_running_loop().time()
            self._return.failed(now)
            return self._return.due - now
        if state.lineage or state.soa is None:
            pause, state.retry = state.retry, min(state.retry * 2, FIRST_RETRIES[1])
            return pause * random.uniform(0.5, 1.0)
        _, retry, expire = inbound.soa_numbers(state.soa)
        left = (state.heard or 0.0) + expire - time.time()
        return _bounded(min(retry, left) if left > 0 else retry)

    async def _expire(self, state: _State) -> None:
        """Serve a zone no more if no primary has answered for too long. One that it is followed on is there."""
        if state.soa is not None and not state.expired and state.on is None:
            now, expire = time.time(), max(LEAST_EXPIRE, inbound.soa_numbers(state.soa)[2])
            if state.heard is not None:
                state.heard = min(state.heard, now)  # the clock may have been wrong then
            if now >= (state.heard or 0.0) + expire:
                await self._withdraw(state, f"no primary has answered for {expire} s")
        self._gauge(state)

    async def _withdraw(self, state: _State, why: str) -> None:
        """Serve a zone no more until there is an answer of a primary that can be taken."""
        text = f"zone {names.to_text(state.origin)}: {why}, and it is served no more"
        self._say(self.publication.log.warning, text)
        await _in_thread(partial(self.publication.expire, state.origin))
        state.expired = True

    async def _fetch(self, state: _State, address: Address) -> None:
        """Bring a zone up to date from a primary. Raises FormatError, OSError, StoreError."""
        try:
            if state.soa is not None and await self._update(state, address):
                return
        except FormatError as error:
            if isinstance(error, BehindError):
                raise
            if not isinstance(error, RcodeError | LineageError):
                text = f"zone {names.to_text(state.origin)}: {_text(address)}: {error}; all of it is fetched"
                self.publication.log.warning(text, key=f"ixfr {state.origin!r}")
        async with self._reached(address) as primary:
            await self._transfer(state, primary, rr.AXFR)

    async def _update(self, state: _State, address: Address) -> bool:
        """Bring a copy up to date; False if that takes all of the zone. Raises FormatError, OSError, StoreError."""
        if self._follows.get(address, True):
            async with self._reached(address) as primary:
                await self._transfer(state, primary, rr.IXFR)
            return True
        if state.lineage:
            return False
        async with self._reached(address) as primary:
            compared = await primary.ask(state.origin, rr.SOA, state.have)
            if compared.got.current:
                await self._take(state, primary, compared.got)
            else:
                await self._transfer(state, primary, rr.IXFR)
        return True

    async def _transfer(self, state: _State, primary: Primary, rtype: int) -> None:
        """Transfer a zone, or what has changed in it. Raises FormatError, OSError, StoreError."""
        have = state.have
        alone = len(self._copy.primaries) == 1 or self._follows.get(primary.address, False)
        patience = PATIENCE if alone and (state.on is None or rtype == rr.AXFR) else TIMEOUT
        follow = primary.address not in self._bare
        try:
            question = await primary.ask(state.origin, rtype, have, follow=follow, patience=patience)
        except RcodeError as error:
            if not follow or error.rcode not in (rr.FORMERR, rr.NOTIMP):
                if state.lineage:
                    primary.refused[state.origin] = None
                raise
            question = await primary.ask(state.origin, rtype, have, patience=patience)
            self._bare.add(primary.address)  # RFC 6891 7: it knows nothing of EDNS
        self._learn(primary)
        primary.refused.pop(state.origin, None)
        if question.lineage:
            primary.zones[state.origin] = None
        await self._take(state, primary, question.got, question.lineage, question.revision)
        if question.lineage and not primary.ended:
            if state.on is not None and state.on is not primary:
                state.on.zones.pop(state.origin, None)
            state.on = primary

    def _learn(self, primary: Primary) -> None:
        """Note whether zones can be followed on a connection, and keep it if they can."""
        self._follows[primary.address] = primary.follows
        there = self._primaries.get(primary.address)
        if primary.follows and (there is None or there.ended):
            self._primaries[primary.address] = primary

    async def _take(
        self, state: _State, primary: Primary, got: Inbound, lineage: bytes = b"", revision: int = 0
    ) -> None:
        assert got.soa is not None
        now = time.time()
        if not got.current or state.expired or lineage != state.lineage or abs(now - state.noted) >= self._noted(state):
            await _in_thread(partial(self.publication.take, state.origin, got, lineage, revision, now))
            state.noted = now
        result = "current" if got.current else "ixfr" if got.steps else "axfr"
        state.wholes = state.wholes + 1 if result == "axfr" else 0
        if not got.current:
            state.soa = RRset(rr.SOA, got.soa.ttl, (got.soa.rdata,))
        state.heard, state.expired = now, False
        known, state.lineage, state.revision = state.lineage, lineage, revision
        self._count(state.origin, result)
        self._gauge(state)
        if got.current or (result == "ixfr" and lineage == known != b""):
            return
        what = f"{got.count} records" if result == "axfr" else "what has changed"
        left = f"; {got.outside} records are not in it and were left out" if got.outside else ""
        text = f"zone {names.to_text(state.origin)}: serial {journal.serial_of(got.soa)}, {what}"
        self._say(self.publication.log.info, f"{text} from {_text(primary.address)}{left}")

    def _noted(self, state: _State) -> float:
        """Seconds for which the store need not know that a primary has answered: a part of what a copy lasts."""
        return min(NOTED, inbound.soa_numbers(state.soa)[2] / 10) if state.soa is not None else 0.0

    # Connections

    @contextlib.asynccontextmanager
    async def _reached(self, address: Address) -> AsyncIterator[Primary]:
        """A connection to a primary: the one that is kept, or another one. Raises OSError."""
        primary = await self._shared(address)
        primary.users += 1
        try:
            await primary.open()
            yield primary
        finally:
            primary.users -= 1
            kept = self._primaries.get(address) is primary
            if not primary.users and not (kept and (primary.follows or primary.refused)):
                primary.refused.clear()
                primary.close()
            if kept and primary.ended:
                del self._primaries[address]

    async def _shared(self, address: Address) -> Primary:
        """The connection that is kept, where zones can be followed; else one for this use.

        One on which everything was refused is kept for its end only: behind a Service, another one may be to a server
        that gives it.
        """
        while (there := self._primaries.get(address)) is not None and not there.ended:
            useful = there.users or not there.known.is_set()
            if there.follows or (useful and self._follows.get(address)):
                return there
            if there.known.is_set() or address in self._follows:
                break
            await there.known.wait()
        made = Primary(address, self._key, self._told, self._quiet, self._ended, self._room)
        if there is not None and not there.users:
            made.refused |= there.refused
            there.refused.clear()
            there.close()
        if self._follows.get(address, True) and (there is None or there.ended):
            self._primaries[address] = made
        return made

    def _told(self, origin: bytes) -> bool:
        """A primary sends a NOTIFY for a zone on its connection; False if that is of no use."""
        state = self._states.get(origin)
        if state is None or state.told.is_set():
            return False
        state.told.set()
        return True

    def _quiet(self, primary: Primary) -> None:
        """Nothing was heard on a connection for a while: one zone after the other is asked about."""
        origin = next(iter(primary.zones), None)
        if origin is not None:
            del primary.zones[origin]
            primary.zones[origin] = None
            self._states[origin].told.set()

    def _ended(self, primary: Primary) -> None:
        """A connection is no more."""
        if not (primary.zones or primary.refused):
            return
        self._return.lost(asyncio.get_running_loop().time(), time.time() - primary.opened)
        if primary.zones:
            text = f"{_text(primary.address)}: {primary.ended}; zones stay as they were"
            self._say(self.publication.log.warning, text)
        for origin in (*primary.zones, *primary.refused):
            state = self._states[origin]
            if state.on is primary:
                state.heard, state.on = max(state.heard or 0.0, primary.heard), None
            state.told.set()  # even if it is being written still

    # Messages and counts

    def _say(self, say: Callable[[str, str], None], text: str) -> None:
        """Log what may come as often as primaries like: of many messages in a minute, the last ones are counted."""
        enough = self._said.is_enough(asyncio.get_running_loop().time())
        say(text, f"{self.publication.title} {say.__name__}" if enough else "")

    def _count(self, origin: bytes, result: str) -> None:
        name = "kdns_secondary_transfers_total"
        self._region.count(("count", name, "zone", names.to_text(origin), "result", result))

    def _gauge(self, state: _State) -> None:
        self._region.set(("gauge", "kdns_secondary_expired", "zone", names.to_text(state.origin)), int(state.expired))


async def _in_thread(work: Callable[[], Result]) -> Result:
    """Call something that blocks. It has ended when this ends, however that is."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait((working,))
        raise


def _bounded(seconds: float) -> float:
    return min(max(seconds, _LEAST), _MOST)


def _text(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return str(error)
