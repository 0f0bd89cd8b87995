"""What followers of zones may take of a worker: places, memory and time; and when they are disconnected."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import dns.edns
import dns.message
import dns.rdatatype
import dns.rrset
import lmdb
import msgspec
import pytest

from kdns.observe.counters import QueryCounters, Region
from kdns.plugins import outgoing, transfer
from kdns.plugins.budget import UNBOUNDED, Budget
from kdns.plugins.chain import link
from kdns.plugins.outgoing import Outgoing
from kdns.plugins.timeouts import Limits
from kdns.server import following, tcp
from kdns.server.following import Following
from kdns.server.respond import Block, Responder, Waiting
from kdns.server.tcp import Connections, TcpServer
from kdns.wire import following as protocol
from kdns.wire import names, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset
from kdns.zone import journal
from kdns.zone.changes import Changes
from kdns.zone.reader import Reader
from kdns.zone.store import EXPIRED, SYNCED, Store, Transaction, Zone
from tests.support.plugins import Ground

pytestmark = pytest.mark.one_speed

ORIGINS = [b"\1%c\4test\0" % letter for letter in b"abc"]


class Centre:
    """The parts of a worker that answers followers, and the store that it reads."""

    def __init__(self, folder: Path, limits: Limits | None = None, most: int = UNBOUNDED) -> None:
        self.changes = Changes.create()
        self.store = Store.open(folder / "state", self.changes, lambda _: None)
        self.store.journaled = lambda zone: True
        self.store.write(self._begin)
        assert self.store._opened is not None
        with mock.patch.object(lmdb, "open", return_value=self.store._opened[0]):  # a process may open it once only
            self.reader = Reader(folder / "state", self.changes)
        self.region = Region.create()
        self.connections = Connections(self.region, most)
        self.following = Following(self.reader, self.changes)
        self.connections.following = self.following
        self.outgoing = Outgoing(self.reader)
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(200)
        self.server = TcpServer(
            self._listener, self._responder(), self.changes, self.connections, Budget(), limits or Limits()
        )
        self.address: tuple[str, int] = self._listener.getsockname()

    def _responder(self) -> Responder:
        rules = transfer.Options((transfer.Rule((".",), (), anyone=True),))
        held = transfer.Held(sources={"test": None})
        ground = Ground()
        self.lines = ground.log.lines
        site = replace(ground.site, changes=self.changes, region=self.region)
        handler = transfer.Handler(rules, held, self.outgoing, site)

        async def nobody(_: Query) -> Response:
            return Response(rcode=rr.REFUSED)

        block = Block(QueryCounters(self.region, "dns://:53", "."), link([handler], nobody), None, None, transfers=True)
        return Responder("dns://:53", {names.ROOT: block}, self.region, print, Waiting(100))

    def _begin(self, txn: Transaction) -> None:
        for origin in ORIGINS:
            zone = txn.add_zone("test", origin)
            soa = rr.soa(b"\2ns" + origin, b"\4host" + origin, 1, 60, 60, 600, 5)
            txn.put(zone, origin, (RRset(rr.SOA, 5, (soa,)), RRset(rr.NS, 5, (b"\2ns" + origin,))))
            txn.set_state(zone, SYNCED)

    def zone(self, number: int = 0) -> Zone:
        return self.store.read(lambda txn: txn.zone(number))

    def change(self, text: str, number: int = 0) -> None:
        zone = self.zone(number)
        self.store.write(lambda txn: txn.put(zone, b"\3web" + zone.origin, (RRset(rr.A, 5, (rr.address(text),)),)))

    def counted(self, name: str, *labels: str) -> int:
        kind = "gauge" if name in ("kdns_followers", "kdns_tcp_connections") else "count"
        return self.region.read().get((kind, name, *labels), (0,))[0]

    def close(self) -> None:
        self.store.close()


class Client:
    """A follower of the test's event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lineage: bytes) -> None:
        self._reader, self._writer = reader, writer
        self._lineage = lineage

    @classmethod
    async def of(cls, centre: Centre, host: str = "127.0.0.1") -> Client:
        lineage = centre.store.read(lambda txn: txn.lineage)
        assert lineage is not None
        return cls(*await asyncio.open_connection(*centre.address, local_addr=(host, 0)), lineage)

    def send(self, data: bytes) -> None:
        self._writer.write(struct.pack("!H", len(data)) + data)

    def ask(self, zone: Zone) -> None:
        """Ask for what has changed in a zone."""
        options: list[dns.edns.Option] = [dns.edns.GenericOption(dns.edns.OptionType(protocol.OPTION), self._lineage)]
        name = names.to_text(zone.origin)
        query = dns.message.make_query(name, "IXFR", use_edns=0, options=options)
        query.authority.append(dns.rrset.from_text(name, 0, "IN", "SOA", f". . {zone.serial} 0 0 0 0"))
        self.send(query.to_wire())

    async def read(self, seconds: float = 5.0) -> dns.message.Message:
        """The next message. Raises TimeoutError, IncompleteReadError at the end."""
        async with asyncio.timeout(seconds):
            size = int.from_bytes(await self._reader.readexactly(2))
            return dns.message.from_wire(await self._reader.readexactly(size), xfr=True, one_rr_per_rrset=True)

    async def follow(self, zone: Zone) -> None:
        self.ask(zone)
        assert not (await self.read()).rcode()

    async def ended(self) -> bool:
        """Whether the server ends the connection without a word."""
        async with asyncio.timeout(5):
            try:
                return await self._reader.read(1) == b""
            except ConnectionError:
                return True

    async def silent_for(self, seconds: float) -> bool:
        try:
            await self.read(seconds)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        self._writer.close()


@contextmanager
def opened(centre: Centre) -> Iterator[Centre]:
    try:
        yield centre
    finally:
        centre.close()


def run(centre: Centre, steps: Callable[[Centre], Awaitable[None]]) -> None:
    async def main() -> None:
        centre.server.start()
        try:
            await asyncio.wait_for(steps(centre), 20)
        finally:
            if not centre.connections.epoll.closed:
                await centre.server.stop()
                await centre.connections.drain(0.1)

    with opened(centre):
        asyncio.run(main())


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# Places


def test_a_follower_that_asks_for_nothing_is_disconnected(tmp_path: Path) -> None:
    async def steps(centre: Centre) -> None:
        follower, other = await Client.of(centre), await Client.of(centre)
        await follower.follow(centre.zone())
        await until(lambda: len(centre.connections.everyone()) == 2)
        started = time.monotonic()
        (one,) = centre.connections.followed.values()
        (two,) = centre.connections.open.values()
        for connection in (one, two):
            connection.expire(started + tcp.FOLLOWER_IDLE - 1)
        assert await other.ended()  # as `timeouts` says
        assert await follower.silent_for(0.05)
        follower.ask(msgspec.structs.replace(centre.zone(), origin=b"\4none\0"))
        await follower.read()
        one.expire(started + tcp.FOLLOWER_IDLE + 0.01)  # it has asked since
        assert await follower.silent_for(0.05)
        started = time.monotonic()
        centre.change("192.0.2.1")
        notify = await follower.read()
        follower.send(dns.message.make_response(notify).to_wire())  # which is no question
        await until(lambda: centre.counted("kdns_notifies_total", "result", "answered") == 1)
        one.expire(started + tcp.FOLLOWER_IDLE + 1)
        assert await follower.ended()
        assert centre.counted("kdns_tcp_connections_closed_total", "reason", "idle") == 2
        assert centre.counted("kdns_followers") == 0

    run(Centre(tmp_path, Limits(idle=2.0)), steps)


def test_the_one_that_was_silent_longest_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "FOLLOWERS", 2)

    async def steps(centre: Centre) -> None:
        first, second, third = [await Client.of(centre) for _ in range(3)]
        await first.follow(centre.zone())
        await second.follow(centre.zone())
        await first.follow(centre.zone())
        await third.follow(centre.zone())
        assert await second.ended()
        centre.change("192.0.2.1")
        for one in (first, third):
            assert (await one.read()).question[0].rdtype == dns.rdatatype.SOA
        assert centre.counted("kdns_tcp_connections_closed_total", "reason", "crowded") == 1
        assert centre.following.count == 2

    run(Centre(tmp_path), steps)


def test_the_address_with_most_followers_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "FOLLOWERS", 4)

    async def steps(centre: Centre) -> None:
        nodes = [await Client.of(centre, f"127.0.1.{number}") for number in (1, 2)]
        for one in nodes:
            await one.follow(centre.zone())
        flood = [await Client.of(centre) for _ in range(5)]
        for one in flood:
            await one.follow(centre.zone())
        late = await Client.of(centre, "127.0.1.3")
        await late.follow(centre.zone())
        assert [await one.ended() for one in flood[:4]] == [True] * 4
        centre.change("192.0.2.1")
        for one in (*nodes, late, flood[4]):
            assert (await one.read()).question[0].rdtype == dns.rdatatype.SOA
        for one in (*nodes, late, flood[4]):
            one.close()
        await until(lambda: centre.counted("kdns_followers") == 0)
        assert centre.connections.shares == {}

    run(Centre(tmp_path), steps)


def test_the_address_that_follows_most_zones_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "MOST", 4)

    async def steps(centre: Centre) -> None:
        node, other = await Client.of(centre, "127.0.1.1"), await Client.of(centre, "127.0.1.2")
        await node.follow(centre.zone())
        await other.follow(centre.zone())
        greedy = await Client.of(centre)
        for number in range(2):
            await greedy.follow(centre.zone(number))
        greedy.ask(centre.zone(2))
        assert await greedy.ended()
        centre.change("192.0.2.1")
        for one in (node, other):
            assert (await one.read()).question[0].rdtype == dns.rdatatype.SOA

    run(Centre(tmp_path), steps)


def test_where_memory_is_short_the_address_with_most_goes_first(tmp_path: Path) -> None:
    async def steps(centre: Centre) -> None:
        node = await Client.of(centre, "127.0.1.1")
        await node.follow(centre.zone())
        flood = [await Client.of(centre) for _ in range(5)]
        for one in flood:
            await one.follow(centre.zone())
        assert await flood[0].ended()
        assert await node.silent_for(0.05)
        assert centre.counted("kdns_followers") == 4

    run(Centre(tmp_path, most=4 * tcp.FOLLOWER_BYTES + 1000), steps)


def test_followers_and_others_are_not_in_each_others_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "CONNECTIONS", 2)

    async def steps(centre: Centre) -> None:
        followers = [await Client.of(centre) for _ in range(2)]
        for one in followers:
            await one.follow(centre.zone())
        others = [await Client.of(centre) for _ in range(3)]
        assert await others[0].ended()
        assert [await one.silent_for(0.02) for one in (*followers, *others[1:])] == [True] * 4
        assert (centre.counted("kdns_followers"), centre.counted("kdns_tcp_connections")) == (2, 4)

    run(Centre(tmp_path), steps)


def test_zones_of_a_connection_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "ZONES", 2)

    async def steps(centre: Centre) -> None:
        follower = await Client.of(centre)
        for number in (0, 1, 1, 0):
            await follower.follow(centre.zone(number))
        assert centre.following.count == 2
        await follower.follow(centre.zone(2))
        assert await follower.ended()
        assert centre.following.count == 0

    run(Centre(tmp_path), steps)


def test_zones_of_all_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "MOST", 3)

    async def steps(centre: Centre) -> None:
        first, second = await Client.of(centre), await Client.of(centre)
        for number in (0, 1):
            await first.follow(centre.zone(number))
        await second.follow(centre.zone(0))
        await second.follow(centre.zone(1))
        assert await first.ended()
        assert centre.following.count == 2

    run(Centre(tmp_path), steps)


def test_where_memory_is_short_there_are_fewer(tmp_path: Path) -> None:
    async def steps(centre: Centre) -> None:
        clients = [await Client.of(centre) for _ in range(6)]
        for one in clients:
            await one.follow(centre.zone())
        assert centre.counted("kdns_followers") == 4
        assert await clients[0].ended()
        assert await clients[1].ended()

    run(Centre(tmp_path, most=4 * tcp.FOLLOWER_BYTES + 1000), steps)


def test_the_number_of_queries_of_a_connection_is_for_others(tmp_path: Path) -> None:
    async def steps(centre: Centre) -> None:
        follower = await Client.of(centre)
        for _ in range(5):
            await follower.follow(centre.zone())
        assert await follower.silent_for(0.02)

    run(Centre(tmp_path, Limits(queries=3)), steps)


def test_a_worker_that_ends_does_not_wait_for_followers(tmp_path: Path) -> None:
    async def steps(centre: Centre) -> None:
        follower, other = await Client.of(centre), await Client.of(centre)
        await follower.follow(centre.zone())
        await until(lambda: len(centre.connections.everyone()) == 2)
        await centre.server.stop()
        drained = asyncio.ensure_future(centre.connections.drain(0.5))
        started = time.monotonic()
        assert await follower.ended()
        assert time.monotonic() - started < 0.3
        assert await other.ended()
        await drained

    run(Centre(tmp_path), steps)


def test_who_takes_a_transfer_slowly_makes_room_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "MOST", 2)
    monkeypatch.setattr(tcp, "RATE", 4000)
    record = RRset(rr.TXT, 5, (bytes([200]) + b"x" * 200,))
    query = dns.message.make_query("a.test.", "AXFR").to_wire()

    def large(txn: Transaction) -> None:
        for number in range(1000):
            txn.put(txn.zone(0), b"\5h%04d" % number + ORIGINS[0], (record,))

    def lazy(centre: Centre, host: str) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.bind((host, 0))
        sock.connect(centre.address)
        sock.setblocking(False)
        sock.send(struct.pack("!H", len(query)) + query)
        return sock

    async def steps(centre: Centre) -> None:
        centre.store.write(large)
        centre._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        stuck, living = lazy(centre, "127.0.1.1"), lazy(centre, "127.0.1.2")
        loop, now = asyncio.get_running_loop(), time.monotonic()

        async def take(least: int) -> None:
            while least > 0:
                least -= len(await loop.sock_recv(living, 4096))

        def pass_by(seconds: float) -> None:
            nonlocal now
            now += seconds
            for connection in centre.connections.everyone():
                connection.expire(now)

        with stuck, living:
            await take(1000)
            await until(lambda: centre.outgoing._sent == 2)
            pass_by(tcp.PACE + 1)  # nobody waits
            node = await Client.of(centre, "127.0.1.3")
            node.send(query)
            await until(lambda: bool(centre.outgoing._waiting))
            await take(int(tcp.RATE * 1.2 * tcp.PACE))
            pass_by(tcp.PACE - 1)
            assert centre.outgoing._waiting
            pass_by(1.0)
            count = 0
            while count < 1003:
                count += len((await node.read()).answer)
            assert [one.host for one in centre.connections.open.values()] == ["127.0.1.2", "127.0.1.3"]
            await take(50_000)  # it goes on
        assert centre.counted("kdns_tcp_connections_closed_total", "reason", "crowded") == 1
        (said,) = (line for line in centre.lines if "WARNING" in line)
        assert "transfer of zone a.test. to 127.0.1.1 is taken slowly while others wait, and was ended" in said

    run(Centre(tmp_path, Limits(write=600.0)), steps)


# Time


def test_after_a_long_round_there_is_a_long_pause(tmp_path: Path) -> None:
    async def steps(centre: Centre) -> None:
        follower = await Client.of(centre)
        await follower.follow(centre.zone())
        centre.change("192.0.2.1")
        await follower.read()
        await follower.follow(centre.zone())
        assert 0 < centre.following.spent < 0.05
        centre.following.spent = 0.1  # as if a thousand had asked
        centre.change("192.0.2.2")
        assert await follower.silent_for(0.2)
        await follower.read(0.5)  # a quarter of the time is for followers

    run(Centre(tmp_path), steps)


def test_who_asks_without_end_keeps_nobody_from_being_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PAUSE", 0.1)

    async def steps(centre: Centre) -> None:
        follower = await Client.of(centre)
        await follower.follow(centre.zone())
        for number in range(3):
            centre.following.spent += 100.0  # what another one has asked since the last look
            centre.change(f"192.0.2.{number}")
            await follower.read(1.0)
            await follower.follow(centre.zone())

    run(Centre(tmp_path), steps)


def test_nobody_looks_for_changes_when_nobody_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    go_on = Following._go_on

    def count(self: Following) -> None:
        nonlocal looks
        looks += 1
        go_on(self)

    monkeypatch.setattr(Following, "_go_on", count)

    async def steps(centre: Centre) -> None:
        await asyncio.sleep(0.05)
        assert looks == 0
        follower = await Client.of(centre)
        await follower.follow(centre.zone())
        await until(lambda: looks > 3)
        follower.close()
        await until(lambda: centre.following.count == 0)
        await asyncio.sleep(0.02)
        after = looks
        await asyncio.sleep(0.05)
        assert looks == after

    run(Centre(tmp_path), steps)


def test_others_have_their_turn_between_notifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_TURN", 3)

    class Counting:
        def __init__(self) -> None:
            self.got = 0

        def notify(self, data: bytes) -> None:
            self.got += 1
            turns.append(turn)

    turns: list[int] = []
    turn = 0

    async def steps(centre: Centre) -> None:
        nonlocal turn
        many = [Counting() for _ in range(10)]
        for one in many:
            assert centre.following.add(one, centre.zone())
        centre.change("192.0.2.1")
        async with asyncio.timeout(5):
            while len(turns) < 10:
                turn += 1
                await asyncio.sleep(0)
        assert [one.got for one in many] == [1] * 10
        assert max(turns.count(number) for number in set(turns)) == 3
        for one in many:
            centre.following.remove(one)

    run(Centre(tmp_path), steps)


def test_others_have_their_turn_between_questions_of_followers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "_SERVED", 3)

    async def steps(centre: Centre) -> None:
        many = [await Client.of(centre) for _ in range(10)]
        for one in many:
            await one.follow(centre.zone())
        first = centre.counted("kdns_transfers_total", "result", "current")
        counts = [first]
        for one in many:
            one.ask(centre.zone())
        async with asyncio.timeout(5):
            while counts[-1] < first + 10:
                await asyncio.sleep(0)
                counts.append(centre.counted("kdns_transfers_total", "result", "current"))
        assert max(after - before for before, after in itertools.pairwise(counts)) == 3
        for one in many:
            await one.read()

    run(Centre(tmp_path), steps)


# What is followed


def test_zones_that_go_and_that_are_too_old(tmp_path: Path) -> None:
    async def steps(centre: Centre) -> None:
        follower = await Client.of(centre)
        for number in (0, 1):
            await follower.follow(centre.zone(number))
        old = centre.zone(0)
        centre.store.write(lambda txn: txn.set_state(old, EXPIRED))
        centre.change("192.0.2.1")
        assert await follower.silent_for(0.05)  # there is nothing to be had
        centre.store.write(lambda txn: txn.set_state(old, SYNCED))
        assert (await follower.read()).question[0].name.to_text() == "a.test."
        gone = centre.zone(1)
        centre.store.write(lambda txn: txn.drop_zone(gone))
        assert (await follower.read()).question[0].name.to_text() == "b.test."
        follower.ask(gone)
        assert (await follower.read()).rcode() == 9  # NOTAUTH
        assert await follower.silent_for(0.05)

    run(Centre(tmp_path), steps)


def test_who_has_less_than_what_was_served_before_is_told_when_it_is_again(tmp_path: Path) -> None:
    async def steps(centre: Centre) -> None:
        follower = await Client.of(centre)
        before = centre.zone()
        centre.change("192.0.2.1")
        await follower.follow(centre.zone())
        (there,) = centre.connections.followed.values()
        centre.following.add(there, before)  # an answer that was under way
        centre.store.write(lambda txn: txn.set_state(before, EXPIRED))
        await until(lambda: centre.following._seen == centre.changes.generation and not centre.following._fresh)
        assert await follower.silent_for(0.05)
        centre.store.write(lambda txn: txn.set_state(before, SYNCED))
        assert (await follower.read()).question[0].name.to_text() == "a.test."

    run(Centre(tmp_path), steps)


def test_what_was_sent_late_is_told_of_at_once(tmp_path: Path) -> None:
    """An answer may be of a commit before the last look."""

    async def steps(centre: Centre) -> None:
        follower, other = await Client.of(centre), await Client.of(centre)
        await follower.follow(centre.zone())
        before = centre.zone()
        centre.change("192.0.2.1")
        await follower.read()
        await other.follow(centre.zone())
        (_, late) = centre.connections.followed.values()
        centre.following.add(late, before)
        await other.read()
        before = centre.zone(1)
        centre.change("192.0.2.1", 1)
        await until(lambda: centre.following._seen == centre.changes.generation)
        centre.following.add(late, before)  # the first one of that zone
        assert (await other.read()).question[0].name.to_text() == "b.test."

    run(Centre(tmp_path), steps)


# Differences


def test_a_difference_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    condensed = journal.condensed

    def count(entries: Any) -> Any:
        nonlocal made
        made += 1
        return condensed(entries)

    monkeypatch.setattr(journal, "condensed", count)
    monkeypatch.setattr(outgoing, "_PORTION", 40)
    monkeypatch.setattr(outgoing, "_INLINE", 100)
    threads: list[int] = []
    make = Outgoing._make

    def note(self: Outgoing, zone: Zone, serial: int) -> Any:
        threads.append(threading.get_ident())
        return make(self, zone, serial)

    monkeypatch.setattr(Outgoing, "_make", note)

    async def steps(centre: Centre) -> None:
        before = centre.zone()
        for number in range(150):
            centre.change(f"192.0.2.{number}")
        clients = [await Client.of(centre) for _ in range(5)]
        for one in clients:
            one.ask(before)  # so many that it takes a thread
        answers = {str(await one.read()).partition("\n")[2] for one in clients}
        assert len(answers) == 1
        assert "192.0.2.149" in answers.pop()
        assert made == 1
        assert len(threads) == 1
        assert threads[0] != threading.get_ident()
        before = centre.zone()
        centre.change("192.0.2.200")
        for one in clients:
            await one.follow(before)
        assert made == 2
        assert len(threads) == 1
        assert len(centre.outgoing._recent) == 2

    run(Centre(tmp_path), steps)


def test_followers_share_a_difference_that_was_made_a_moment_ago(tmp_path: Path, monkeypatch: Any) -> None:
    async def steps(centre: Centre) -> None:
        monkeypatch.setattr(outgoing, "SHARED", 60.0)
        first, second, third = [await Client.of(centre) for _ in range(3)]
        before = centre.zone()
        centre.change("192.0.2.1")
        first.ask(before)
        answer = (await first.read()).answer
        middle = centre.zone()
        centre.change("192.0.2.2")
        assert (await first.read()).question[0].name.to_text() == "a.test."
        second.ask(before)
        assert (await second.read()).answer == answer
        assert (await second.read()).question[0].name.to_text() == "a.test."  # it is told of the rest
        second.ask(middle)
        assert "192.0.2.2" in str(await second.read())
        assert (
            centre.outgoing.difference_at_once(centre.zone(), before.serial, "::1") is not None
        )  # who does not follow
        monkeypatch.setattr(outgoing, "SHARED", 0.0)
        centre.change("192.0.2.3")
        third.ask(before)
        assert "192.0.2.3" in str(await third.read())

    run(Centre(tmp_path), steps)


def test_followers_who_wait_for_one_difference_get_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "_INLINE", 0)
    made: list[int] = []
    make = Outgoing._make

    async def steps(centre: Centre) -> None:
        def changing(self: Outgoing, zone: Zone, serial: int) -> Any:
            found = make(self, zone, serial)
            made.append(serial)
            centre.change(f"192.0.2.{100 + len(made)}")  # faster than it is made
            return found

        monkeypatch.setattr(Outgoing, "_make", changing)
        before = centre.zone()
        centre.change("192.0.2.1")
        there = centre.zone()
        centre.change("192.0.2.2")  # since they were read
        asking = [centre.outgoing.difference(there, before.serial, "127.0.0.1", followed=True) for _ in range(3)]
        found = await asyncio.gather(*asking)
        assert len(made) == 1
        assert len(set(found)) == 1

    run(Centre(tmp_path), steps)


def test_who_asks_for_many_differences_gets_them_one_after_the_other(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(outgoing, "ROUND", 60.0)
    monkeypatch.setattr(outgoing, "OF_ONE", 1e-9)
    greedy, node, other = "192.0.2.1", "192.0.2.2", "192.0.2.3"

    async def steps(centre: Centre) -> None:
        serials = []
        for number in range(5):
            serials.append(centre.zone().serial)
            centre.change(f"192.0.2.{number}")
        made, zone = centre.outgoing, centre.zone()
        assert made.difference_at_once(zone, serials[0], greedy) is not None
        assert made.difference_at_once(zone, serials[1], greedy) is None
        assert made.difference_at_once(zone, serials[0], greedy) is not None  # which is there
        assert made.difference_at_once(zone, serials[2], node) is not None
        assert await made.difference(zone, serials[1], greedy) is not None
        monkeypatch.setattr(outgoing, "OF_ALL", 1e-9)  # for all together
        assert made.difference_at_once(zone, serials[4], other) is None
        monkeypatch.setattr(outgoing, "ROUND", 0.0)  # in the next one
        assert made.difference_at_once(zone, serials[4], greedy) is not None

    run(Centre(tmp_path), steps)


def test_after_a_difference_in_a_thread_there_is_a_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "_INLINE", 0)
    make = Outgoing._make

    def slowly(self: Outgoing, zone: Zone, serial: int) -> Any:
        time.sleep(0.02)
        return make(self, zone, serial)

    monkeypatch.setattr(Outgoing, "_make", slowly)

    async def steps(centre: Centre) -> None:
        serials = []
        for number in range(3):
            serials.append(centre.zone().serial)
            centre.change(f"192.0.2.{number}")
        started = time.monotonic()
        await asyncio.gather(*(centre.outgoing.difference(centre.zone(), serial, "::1") for serial in serials))
        assert time.monotonic() - started > 3 * 0.02 + 2 * 0.02 * outgoing.REST
        monkeypatch.setattr(outgoing, "REST", 1000)
        zone = centre.zone()
        centre.change("192.0.2.3")
        await centre.outgoing.difference(centre.zone(), zone.serial, "::1")
        resting = asyncio.ensure_future(centre.outgoing.difference(centre.zone(), serials[0], "::1"))
        await asyncio.sleep(0)
        assert await asyncio.wait_for(centre.outgoing.whole(centre.zone()), 5) is not None  # it waits for none
        assert not resting.done()
        resting.cancel()

    run(Centre(tmp_path), steps)


def test_small_answers_take_no_place_of_a_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "MOST", 0)

    async def steps(centre: Centre) -> None:
        follower = await Client.of(centre)
        await follower.follow(centre.zone())
        before = centre.zone()
        centre.change("192.0.2.1")
        follower.ask(before)
        assert len((await follower.read()).answer) in (0, 5)  # the NOTIFY may come first

    centre = Centre(tmp_path)
    centre.outgoing = Outgoing(centre.reader)
    run(centre, steps)


def test_new_followers_share_a_zone_that_was_made_a_moment_ago(tmp_path: Path) -> None:
    async def steps(centre: Centre) -> None:
        zone = centre.zone()
        whole = await centre.outgoing.whole(zone, followed=True)
        centre.change("192.0.2.1")
        assert whole is not None
        assert await centre.outgoing.whole(zone, followed=True) is whole
        other = await centre.outgoing.whole(zone)
        assert other is not None
        assert other.zone.serial == centre.zone().serial
        whole.made -= outgoing.FRESH
        other.made -= outgoing.FRESH
        centre.change("192.0.2.2")
        third = await centre.outgoing.whole(zone, followed=True)
        assert third is not None
        assert third.zone.serial == centre.zone().serial

    run(Centre(tmp_path), steps)
