"""secondary: copies of zones that are followed on one connection (`kdns.wire.following`)."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from unittest import mock

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import pytest

from kdns.observe.counters import Region
from kdns.plugins.secondary import Copy
from kdns.server.primary import USELESS
from kdns.server.secondary_feed import PART, SPREAD, SecondaryFeed, SecondaryPublication, _Return, _Said
from kdns.wire import following, message, names, rr
from kdns.wire.rrset import RRset
from kdns.zone import inbound, transfer
from kdns.zone.journal import Difference, Row
from kdns.zone.transfer import Messages, Packer
from tests.support import objects, ports
from tests.support.others import ADDRESS, KEY, SECRET
from tests.support.plugins import Lines
from tests.support.server import Server, read_message

pytestmark = pytest.mark.one_speed

FIRST, SECOND = b"lineage1", b"lineage2"
OTHER = "X28hl0BOfAL5G0jsmJWSacrwn7YRm2f6U5brnzwWEus="
COREFILE = """
a.test:$dns b.test:$dns {
    bind 127.0.0.1
    prometheus $host:$metrics
    secondary {
        transfer from $primary
    }
}
"""
IMPATIENT = """
from kdns.cli import app
from kdns.server import primary, secondary_feed
primary.QUIET = 0.2
primary.TIMEOUT = secondary_feed.TIMEOUT = secondary_feed.PATIENCE = 0.5
secondary_feed.SPREAD = 0.05
secondary_feed.LASTING = 0.0
app(prog_name="kdns")
"""
"""`kdns` that asks after 0.2 s of silence (for users 5 s), waits 0.5 s for an answer (5 or 35 s), and comes back within
0.05 s (1 s)."""

DELAY = 0.03
HASTY = """
import os, time
now = time.time
time.time = lambda: now() + 1e6 * os.path.exists("jump")
""" + IMPATIENT.replace(
    "app(", "secondary_feed._SAID = 5\nsecondary_feed.FIRST_RETRIES = 0.1, 0.2\nsecondary_feed.LEAST_EXPIRE = 1\napp("
)
"""The same with few messages, and what fails is tried again within 0.2 s (10 s). A file makes the clock jump."""


@dataclass
class Zone:
    """A zone of a centre: a serial and the number in the address of each name; and each change that there was."""

    origin: bytes
    serial: int = 10
    expire: int = 600
    hosts: dict[str, int] = field(default_factory=lambda: {f"h{number}": 1 for number in range(400)})
    changes: list[Difference] = field(default_factory=list)

    def soa(self) -> Row:
        return Row(
            self.origin,
            rr.SOA,
            5,
            rr.soa(b"\2ns" + self.origin, b"\4host" + self.origin, self.serial, 60, 60, self.expire, 5),
        )

    def row(self, host: str) -> Row:
        number = self.hosts[host]
        return Row(names.join([host.encode()])[:-1] + self.origin, rr.A, 5, bytes((10, 0, number >> 8, number & 255)))

    def change(self, host: str, number: int) -> None:
        before, old = self.soa(), self.row(host)
        self.serial += 1
        self.hosts[host] = number
        self.changes.append(Difference(before, self.soa(), [old], [self.row(host)]))

    def whole(self) -> Messages:
        packer = Packer(self.origin, 2000)
        for row in (self.soa(), *map(self.row, self.hosts), self.soa()):
            packer.add(row)
        return packer.done()

    def since(self, serial: int) -> Messages:
        found = [one for one in self.changes if int.from_bytes(one.before.rdata[-20:-16]) >= serial]
        if not found:
            return transfer.alone(self.soa())
        packer = Packer(self.origin)
        packer.add(self.soa())
        for one in found:
            for row in (one.before, *one.removed, one.after, *one.added):
                packer.add(row)
        packer.add(self.soa())
        return packer.done()


@dataclass(eq=False)
class Connection:
    """That of a follower. asked: zone, type, serial and option of questions. answered: NOTIFYs. open: until its end."""

    sock: socket.socket
    asked: list[tuple[str, str, int | None, bytes | None]] = field(default_factory=list)
    answered: int = 0
    open: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, data: bytes) -> None:
        with self.lock, contextlib.suppress(OSError):
            self.sock.sendall(struct.pack("!H", len(data)) + data)

    def notify(self, zone: str) -> None:
        query = dns.message.make_query(zone, "SOA")
        query.set_opcode(dns.opcode.NOTIFY)
        query.flags = dns.flags.Flag(query.flags & ~dns.flags.RD | dns.flags.AA)
        self.send(query.to_wire())


class Centre:
    """A primary whose zones can be followed.

    lineage: None to know nothing of them. silent: it answers nothing. once: it hangs up behind an answer, one time.
    pause: it waits in the middle of an AXFR of this zone, having set `half`, until `go_on`. refused: zones that it
    does not give any more. fickle: each answer is of another lineage, and takes a while. bare: it knows nothing of
    EDNS. revision: of the data; revisions: of zones that have another one.
    """

    def __init__(self) -> None:
        self.zones = {f"{name}.test": Zone(names.from_text(f"{name}.test")) for name in "ab"}
        self.port = ports.free_port([ADDRESS])
        self.lineage: bytes | None = FIRST
        self.revision = 0
        self.revisions: dict[str, int] = {}
        self.silent = self.once = self.fickle = self.bare = False
        self.pause = ""
        self.refused: tuple[str, ...] = ()
        self.half, self.go_on = threading.Event(), threading.Event()
        self.connections: list[Connection] = []

    def __enter__(self) -> Self:
        self.sock = socket.create_server((ADDRESS, self.port))
        self.thread = threading.Thread(target=self._accept, args=(self.sock,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Be gone."""
        self.go_on.set()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.disconnect()
        self.thread.join(5)

    def disconnect(self) -> None:
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    @property
    def last(self) -> Connection:
        return self.connections[-1]

    @property
    def asked(self) -> list[tuple[str, str, int | None, bytes | None]]:
        return [asked for connection in self.connections for asked in connection.asked]

    def change(self, zone: str, host: str, number: int, *, tell: bool = True) -> None:
        self.zones[zone].change(host, number)
        if tell:
            self.last.notify(zone)

    def _accept(self, sock: socket.socket) -> None:
        while True:
            try:
                connection = Connection(sock.accept()[0])
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        with connection.sock, contextlib.suppress(OSError):
            while (data := read_message(connection.sock)) is not None:
                query = dns.message.from_wire(data)
                if query.flags & dns.flags.QR:
                    assert query.opcode() == dns.opcode.NOTIFY
                    connection.answered += 1
                    continue
                zone = query.question[0].name.to_text(omit_final_dot=True)
                kind = dns.rdatatype.to_text(query.question[0].rdtype)
                serial = query.authority[0][0].serial if query.authority else None
                options = {int(option.otype): option.to_wire() for option in query.options}
                connection.asked.append((zone, kind, serial, options.get(following.OPTION)))
                if not self.silent:
                    threading.Thread(target=self._answer, args=(connection, query, zone, kind, serial, options)).start()
        connection.open = False

    def _answer(
        self,
        connection: Connection,
        query: dns.message.Message,
        zone: str,
        kind: str,
        serial: int | None,
        options: dict[int, bytes],
    ) -> None:
        there = self.zones[zone]
        revision = self.revisions.get(zone, self.revision)
        theirs = options.get(following.OPTION, b"")
        behind = theirs[:8] != self.lineage and following.revision({following.OPTION: theirs}) > revision
        if self.bare and query.edns >= 0:
            response = dns.message.make_response(dns.message.make_query(zone, kind, id=query.id))
            response.set_rcode(dns.rcode.FORMERR)
            connection.send(response.to_wire())
            return
        if zone in self.refused or behind:
            response = dns.message.make_response(query)
            response.set_rcode(dns.rcode.SERVFAIL)
            if behind:
                mark = following.mark(SECOND, revision)
                response.use_edns(options=[dns.edns.GenericOption(dns.edns.OptionType(following.OPTION), mark)])
            connection.send(response.to_wire())
            return
        if self.fickle:
            time.sleep(DELAY)
            self.lineage = os.urandom(following.LINEAGE)
        known = kind == "IXFR" and (self.lineage is None or theirs[:8] == self.lineage)
        messages = (
            there.since(serial or 0) if known else transfer.alone(there.soa()) if kind == "SOA" else there.whole()
        )
        question = there.origin + struct.pack("!HH", dns.rdatatype.from_text(kind), rr.IN)
        own = following.mark(self.lineage or b"", revision)
        opt = message.opt_record(False, options=message.option(following.OPTION, own))
        for number, (count, body) in enumerate(messages):
            marked = opt if self.lineage is not None and not number and kind != "SOA" else b""
            if number == 1 and zone == self.pause:
                self.half.set()
                self.go_on.wait(10)
            connection.send(
                struct.pack("!HHHHHH", query.id, 0x8400, 1, count, 0, bool(marked)) + question + body + marked
            )
        if self.once:
            self.once = False
            connection.sock.shutdown(socket.SHUT_RDWR)


def text(centre: Centre, extra: str = "") -> str:
    return COREFILE.replace("$primary", f"{ADDRESS}:{centre.port}").replace("}\n}", "}\n" + extra + "}")


def has(server: Server, name: str, number: int) -> bool:
    return server.texts(name) == [f"10.0.{number >> 8}.{number & 255}"]


@pytest.fixture
def centre() -> Iterator[Centre]:
    with Centre() as found:
        yield found


def test_all_zones_are_followed_on_one_connection(serve: Callable[..., Server], centre: Centre) -> None:
    server = serve(corefile=text(centre))
    server._wait(lambda: has(server, "h7.a.test", 1) and has(server, "h7.b.test", 1), 10, "two copies")
    assert sorted(centre.asked) == [("a.test", "AXFR", None, b""), ("b.test", "AXFR", None, b"")]
    for number in range(2, 12):
        zone = "ab"[number % 2] + ".test"
        centre.change(zone, "h7", number)
        server._wait(lambda zone=zone, number=number: has(server, f"h7.{zone}", number), 5, f"change {number}")
    assert len(centre.connections) == 1
    assert centre.asked[2:4] == [("a.test", "IXFR", 10, FIRST), ("b.test", "IXFR", 10, FIRST)]
    assert [asked[1] for asked in centre.asked[2:]] == ["IXFR"] * 10  # the SOA record is not asked for
    server._wait(lambda: centre.last.answered == 10, 5, "answers to NOTIFYs")
    centre.change("a.test", "h8", 99, tell=False)
    centre.change("a.test", "h9", 99)  # two at once
    server._wait(lambda: has(server, "h8.a.test", 99) and has(server, "h9.a.test", 99), 5, "both")
    metrics = server.metrics()
    assert metrics.value("kdns_secondary_transfers_total", result="axfr") == 2
    assert metrics.value("kdns_secondary_transfers_total", result="ixfr") == 11
    assert 0 <= metrics.value("kdns_secondary_age_seconds", zone="a.test.") < 5
    with contextlib.closing(http.client.HTTPConnection(ADDRESS, server.metrics_port, timeout=5)) as connection:
        connection.request("GET", "/", headers={"Accept": "application/json"})
        (source,) = json.load(connection.getresponse())["sources"]
    assert 0 < source["age"] < 5
    assert server.terminate() < 4
    assert "connection" not in server.log


def test_a_zone_changes_while_another_one_is_transferred(serve: Callable[..., Server], centre: Centre) -> None:
    centre.pause = "b.test"
    server = serve(corefile=text(centre))
    assert centre.half.wait(10)
    server._wait(lambda: has(server, "h7.a.test", 1), 10, "the first copy")
    for number in (2, 3):
        centre.change("a.test", "h7", number)
        server._wait(lambda number=number: has(server, "h7.a.test", number), 5, f"change {number}")
    centre.change("b.test", "h7", 2)  # of which the half that is here knows nothing
    assert not server.texts("h7.b.test")
    centre.go_on.set()
    server._wait(lambda: has(server, "h7.b.test", 2), 5, "the second copy and its change")
    assert len(centre.connections) == 1


def test_serials_are_compared_within_a_lineage_only(serve: Callable[..., Server], centre: Centre) -> None:
    server = serve(corefile=text(centre), program=IMPATIENT)
    server._wait(lambda: has(server, "h7.a.test", 1) and has(server, "h7.b.test", 1), 10, "two copies")
    server.kill()
    centre.change("a.test", "h7", 2)
    server.start()
    server._wait(lambda: has(server, "h7.a.test", 2), 10, "what has changed meanwhile")
    assert ("a.test", "IXFR", 10, FIRST) in centre.asked  # it is known after a restart
    name = "kdns_secondary_transfers_total"
    server._wait(lambda: server.metrics().value(name, zone="a.test.", result="ixfr") == 1, 5, "the count")

    def move(lineage: bytes | None, serial: int, number: int) -> None:
        centre.lineage = lineage
        for zone in centre.zones.values():
            zone.changes.clear()
            zone.serial = serial
            zone.hosts["h7"] = number
        centre.disconnect()
        server._wait(lambda: has(server, "h7.a.test", number) and has(server, "h7.b.test", number), 10, f"{lineage!r}")

    move(SECOND, 3, 33)  # another store, whose serials are lower
    move(None, 3, 55)  # a server that has no lineages, and says that nothing is newer
    assert [asked for asked in centre.asked if asked[0] == "a.test"][-2:] == [
        ("a.test", "IXFR", 3, SECOND),
        ("a.test", "AXFR", None, SECOND),
    ]
    failed = server.metrics().value("kdns_secondary_transfers_total", result="failed")
    assert failed <= 2, "no more than what was asked on a connection that ended"


def test_another_primary_is_followed_when_one_is_gone(serve: Callable[..., Server], centre: Centre) -> None:
    """But not before it has what the first one had: nobody is to get an old answer after a new one. The zones may be of
    two clusters, whose revisions have nothing to do with each other."""
    centre.revision = 7
    centre.revisions["b.test"] = 7_000_000
    with Centre() as other:
        other.lineage, other.revision = SECOND, 6
        other.revisions["b.test"] = 6_999_999
        for zone in other.zones.values():
            zone.hosts["h7"] = 5
        where = f"{ADDRESS}:{centre.port}"
        server = serve(corefile=text(centre).replace(where, f"{where} {ADDRESS}:{other.port}"), program=IMPATIENT)
        server._wait(lambda: has(server, "h7.a.test", 1) and has(server, "h7.b.test", 1), 10, "two copies")
        assert not other.connections
        centre.close()
        server._wait(lambda: len({asked[0] for asked in other.asked}) == 2, 10, "questions")
        assert ("a.test", "IXFR", 10, following.mark(FIRST, 7)) in other.asked
        assert has(server, "h7.a.test", 1)
        assert has(server, "h7.b.test", 1)
        other.revision = 7
        other.revisions["b.test"] = 7_000_001
        server._wait(lambda: has(server, "h7.a.test", 5) and has(server, "h7.b.test", 5), 10, "those of the other one")
        other.change("b.test", "h7", 6)
        server._wait(lambda: has(server, "h7.b.test", 6), 5, "a change")
        assert sum(connection.open for connection in other.connections) == 1
        assert "it is behind the one that our copy is of" in server.log


def test_a_primary_that_knows_nothing_of_edns_is_asked_without_from_then_on(
    serve: Callable[..., Server], centre: Centre
) -> None:
    centre.bare, centre.lineage = True, None
    server = serve(corefile=text(centre))
    server._wait(lambda: has(server, "h7.a.test", 1) and has(server, "h7.b.test", 1), 10, "two copies")
    first = len(centre.asked)
    assert any(option is not None for *_, option in centre.asked)
    centre.change("a.test", "h7", 2, tell=False)
    notify = dns.message.make_query("a.test", "SOA")
    notify.set_opcode(dns.opcode.NOTIFY)
    server.raw_udp(notify.to_wire())
    server._wait(lambda: has(server, "h7.a.test", 2), 5, "the change")
    assert centre.asked[first:] == [("a.test", "SOA", None, None), ("a.test", "IXFR", 10, None)]


def test_a_reload_goes_on_from_the_copy(serve: Callable[..., Server], centre: Centre) -> None:
    server = serve(corefile=text(centre))
    server._wait(lambda: has(server, "h7.a.test", 1) and has(server, "h7.b.test", 1), 10, "two copies")
    server.write_corefile(text(centre, "    whoami\n"))
    server.signal(signal.SIGUSR1)
    server._wait(lambda: len(centre.connections) == 2 and len(centre.last.asked) == 2, 10, "another connection")
    assert sorted(centre.last.asked) == [("a.test", "IXFR", 10, FIRST), ("b.test", "IXFR", 10, FIRST)]
    server._wait(lambda: not centre.connections[0].open, 5, "the end of the first one")
    centre.change("a.test", "h7", 2)
    server._wait(lambda: has(server, "h7.a.test", 2), 5, "a change")
    assert "zones stay as they were" not in server.log


def test_a_copy_of_a_copy_is_of_the_lineage_of_its_origin(serve: Callable[..., Server], centre: Centre) -> None:
    centre.revision = 300
    given = text(centre, "    transfer {\n        to *\n    }\n")
    server = serve(corefile=given, program=IMPATIENT)
    second = serve(corefile=given.replace(str(centre.port), str(server.port)), program=IMPATIENT)
    second._wait(lambda: has(second, "h7.a.test", 1) and has(second, "h7.b.test", 1), 10, "copies of copies")
    for number in (2, 3):
        centre.change("a.test", "h7", number)
        second._wait(lambda number=number: has(second, "h7.a.test", number), 5, f"change {number}")
    assert second.metrics().value("kdns_secondary_transfers_total", zone="a.test.", result="axfr") == 1
    centre.lineage = SECOND  # another store, with the same serial
    centre.zones["a.test"].hosts["h7"] = 44
    centre.zones["a.test"].changes.clear()
    centre.disconnect()
    second._wait(lambda: has(second, "h7.a.test", 44), 10, "what the other store has")
    second.kill()
    server.kill()
    centre.change("a.test", "h7", 45, tell=False)
    server.start()
    second.start()
    second._wait(lambda: has(second, "h7.a.test", 45), 10, "a change meanwhile")
    assert ("a.test", "IXFR", 12, following.mark(SECOND, 300)) in centre.asked
    assert second.metrics().value("kdns_secondary_transfers_total", zone="a.test.", result="axfr") == 0
    assert [rcode_for(server, FIRST, revision) for revision in (0, 300, 301)] == ["NOERROR", "NOERROR", "SERVFAIL"]
    assert rcode_for(server, SECOND, 301) == "NOERROR"


def rcode_for(server: Server, lineage: bytes, revision: int) -> str:
    """What somebody gets who has a copy of that lineage and revision."""
    data = inbound.query(7, names.from_text("a.test"), rr.AXFR, mark=following.mark(lineage, revision))
    with socket.create_connection((ADDRESS, server.port), 5) as sock:
        sock.sendall(struct.pack("!H", len(data)) + data)
        found = read_message(sock)
        assert found is not None
        return dns.rcode.to_text(dns.rcode.Rcode(found[3] & 15))


# What goes wrong


def test_a_primary_that_falls_silent_is_left_and_found_again(serve: Callable[..., Server], centre: Centre) -> None:
    server = serve(corefile=text(centre), program=HASTY)
    server._wait(lambda: has(server, "h7.a.test", 1) and has(server, "h7.b.test", 1), 10, "two copies")
    server._wait(lambda: len(centre.asked) >= 4, 5, "questions")
    assert {asked[0] for asked in centre.asked[2:4]} == {"a.test", "b.test"}  # in turn
    assert len(centre.connections) == 1
    assert server.metrics().value("kdns_secondary_age_seconds", zone="a.test.") < 1
    centre.silent = True
    server._wait(lambda: len(centre.connections) > 2, 10, "other connections")
    assert has(server, "h7.a.test", 1)
    assert not centre.connections[0].open
    server._wait(lambda: server.metrics().value("kdns_secondary_age_seconds", zone="a.test.") > 1, 10, "its age")
    centre.change("a.test", "h7", 2, tell=False)
    centre.silent = False
    server._wait(lambda: has(server, "h7.a.test", 2), 15, "the change")
    assert sorted(asked for asked in centre.asked if asked[1] == "AXFR") == [
        (f"{name}.test", "AXFR", None, b"") for name in "ab"
    ]
    assert "it does not answer in time; zones stay as they were" in server.log
    centre.disconnect()
    server._wait(lambda: "it has closed the connection; zones stay as they were" in server.log, 5, "why")


def test_a_connection_that_ends_behind_a_copy_is_replaced(serve: Callable[..., Server], centre: Centre) -> None:
    centre.once = True
    server = serve(corefile=text(centre), program=IMPATIENT)
    server._wait(lambda: has(server, "h7.a.test", 1) and has(server, "h7.b.test", 1), 10, "two copies")
    for zone in ("a.test", "b.test"):
        centre.change(zone, "h7", 2, tell=False)
    server._wait(lambda: has(server, "h7.a.test", 2) and has(server, "h7.b.test", 2), 10, "changes of both")
    assert len(centre.connections) == 2


def test_zones_that_are_given_again_are_asked_for_when_the_connection_ends(
    serve: Callable[..., Server], centre: Centre
) -> None:
    slow = IMPATIENT.replace("app(", "secondary_feed.FIRST_RETRIES = 8.0, 16.0\napp(")
    server = serve(corefile=text(centre), program=slow)
    server._wait(lambda: has(server, "h7.a.test", 1) and has(server, "h7.b.test", 1), 10, "two copies")
    failed = {"a.test": 0, "b.test": 0}

    def counts(zones: Iterable[str]) -> dict[str, float]:
        metrics, name = server.metrics(), "kdns_secondary_transfers_total"
        return {zone: metrics.value(name, zone=f"{zone}.", result="failed") for zone in zones}

    for number, refused in enumerate((("b.test",), ("a.test", "b.test")), 2):
        centre.refused = refused
        for zone in failed:
            failed[zone] += zone in refused
            centre.change(zone, "h7", number)
        server._wait(lambda: counts(failed) == failed, 5, "what is refused")
        there = len(centre.connections)
        centre.refused = ()
        centre.disconnect()  # as a server does that goes over to another configuration
        for zone in failed:
            server._wait(lambda zone=zone, number=number: has(server, f"h7.{zone}", number), 2, zone)
        assert len(centre.connections) == there + 1
    centre.refused = ("a.test", "b.test")
    for zone in failed:
        failed[zone] += 1
        centre.change(zone, "h7", 4)
    server._wait(lambda: counts(failed) == failed, 5, "what is refused")
    centre.disconnect()
    failed = {zone: count + 1 for zone, count in failed.items()}
    server._wait(lambda: counts(failed) == failed, 5, "what is refused again")
    centre.refused = ()
    centre.disconnect()  # nothing was followed on it
    for zone in failed:
        server._wait(lambda zone=zone: has(server, f"h7.{zone}", 4), 2, zone)
    assert sum(connection.open for connection in centre.connections) == 1


GARBAGE = {
    "what was not asked": bytes.fromhex("1234840000010001000000000161047465737400000600010000"),
    "neither a response nor a NOTIFY": bytes.fromhex("123400000001000000000000016104746573740000060001"),
    "a message is cut short": b"\x12\x34\x24",
    "for something else than an SOA record": bytes.fromhex("123424000001000000000000016104746573740000010001"),
    "malformed": bytes.fromhex("123424000001000000000000ff6104746573740000060001"),
}


def test_what_makes_no_sense_ends_a_connection_and_no_more(serve: Callable[..., Server], centre: Centre) -> None:
    server = serve(corefile=text(centre), program=IMPATIENT)
    for number, (reason, data) in enumerate(GARBAGE.items(), 1):
        server._wait(lambda number=number: has(server, "h7.a.test", number), 10, "the copy")
        there = centre.last
        there.send(data)
        server._wait(lambda there=there: not there.open, 5, reason)
        server._wait(lambda reason=reason: reason in server.log, 5, reason)
        centre.change("a.test", "h7", number + 1, tell=False)
    server._wait(lambda: has(server, "h7.a.test", len(GARBAGE) + 1), 10, "the last change")
    there = centre.last
    for zone in ("c.test", "a.test", "h7.a.test") * 500:
        there.notify(zone)  # whatever it is for
    server._wait(lambda: there.answered == 1500, 10, "the answers")
    assert there.open
    for _ in range(USELESS):
        there.notify("c.test")
    server._wait(lambda: not there.open, 5, "the end of it")
    assert "NOTIFYs that are of no use" in server.log
    assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Centre]]:
    """A server that has both copies of a centre, whose second zone lasts for a second."""
    with Centre() as centre:
        centre.zones["b.test"].expire = 1
        with Server(tmp_path_factory.mktemp("followed"), corefile=text(centre), program=HASTY) as server:
            server._wait(lambda: has(server, "h7.a.test", 1) and has(server, "h7.b.test", 1), 10, "two copies")
            yield server, centre


def test_a_zone_that_is_not_given_any_more_gets_old_though_its_primary_is_there(
    followed: tuple[Server, Centre],
) -> None:
    server, centre = followed
    (server.folder / "jump").touch()
    asked = len(centre.asked)
    server._wait(lambda: len(centre.asked) >= asked + 3, 5, "questions after a silence")
    assert "served no more" not in server.log  # who is there has answered
    centre.refused = ("b.test",)
    centre.change("b.test", "h7", 2)
    centre.change("a.test", "h7", 2)
    server._wait(lambda: server.query("h7.b.test").rcode() == dns.rcode.SERVFAIL, 10, "its end")
    assert has(server, "h7.a.test", 2)
    assert server.metrics().value("kdns_secondary_age_seconds", zone="b.test.") > 0.9
    assert len(centre.connections) == 1  # it is heard all the time
    centre.refused = ()
    server._wait(lambda: has(server, "h7.b.test", 2), 10, "its return")
    assert len(centre.connections) == 1


def test_a_primary_of_ever_other_lineages_costs_little(followed: tuple[Server, Centre]) -> None:
    server, centre = followed
    centre.fickle = True
    before, asked = time.monotonic(), len(centre.asked)

    def come(count: int) -> bool:
        centre.last.notify("a.test")
        return len(centre.asked) - asked >= count

    server._wait(lambda: come(8), 10, "whole zones")
    assert time.monotonic() - before > 6 * DELAY * PART
    centre.fickle = False
    assert {kind for _, kind, *_ in centre.asked[asked:]} == {"IXFR"}
    assert server.log.count("a.test.: serial") <= 7
    assert len(centre.connections) == 1


def test_a_clock_that_was_wrong_does_not_make_a_copy_last(monkeypatch: pytest.MonkeyPatch) -> None:
    publication = mock.create_autospec(SecondaryPublication, instance=True)
    publication.log = Lines()
    feed = SecondaryFeed(publication, Copy(("a.test.",), ((ADDRESS, 53),)), None, Region.create())
    zone = Zone(names.from_text("a.test"))
    state = feed._states[zone.origin]
    now = time.time()
    state.soa, state.heard = RRset(rr.SOA, 5, (zone.soa().rdata,)), now + 1e6
    for later, expired in ((0.0, False), (zone.expire - 1.0, False), (zone.expire + 1.0, True)):
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        asyncio.run(feed._expire(state))
        assert state.expired == expired


def test_messages_are_few_however_much_there_is_to_say() -> None:
    said = _Said(3)
    assert [said.is_enough(now) for now in (0.0, 1.0, 2.0, 3.0, 59.0)] == [False, False, False, True, True]
    assert [said.is_enough(now) for now in (60.0, 60.5, 61.0)] == [False, True, False]


def test_nobody_comes_back_at_once_and_all_come_back_in_time() -> None:
    firsts = []
    for _ in range(200):
        found = _Return()
        found.lost(100.0, lasted=1000.0)
        firsts.append(found.due - 100.0)
        pauses = []
        for _ in range(10):
            now = found.due
            found.failed(now)
            found.failed(now)  # of another zone
            pauses.append(found.due - now)
        assert all(0.125 * 2**step <= pause <= 0.25 * 2**step for step, pause in enumerate(pauses[:6]))
        assert all(5.0 <= pause <= 10.0 for pause in pauses[6:])
    assert min(firsts) < 0.1 * SPREAD
    assert 0.9 * SPREAD < max(firsts) <= SPREAD
    short = _Return()
    for _ in range(8):
        short.lost(short.due, lasted=0.1)  # it connects, and is sent away
    assert short.pause == 10.0


# With a kdns


CENTRE = f"""
cluster.local:$dns 10.in-addr.arpa:$dns {{
    bind 127.0.0.1
    ready $host:$ready
    tsig {{
        secret {KEY} {SECRET}
        require AXFR IXFR
    }}
    kubernetes cluster.local 10.in-addr.arpa {{
        manifests $manifests
    }}
    transfer {{
        to *
    }}
}}
"""
NODE = f"""
cluster.local:$dns 10.in-addr.arpa:$dns {{
    bind 127.0.0.1
    prometheus $host:$metrics
    tsig {{
        secret {KEY} {SECRET}
    }}
    secondary {{
        transfer from 127.0.0.1:$centre
        key {KEY}
    }}
}}
"""


def cluster(number: int) -> list[objects.Object]:
    return [objects.service(f"s{each}", ips=[f"10.96.{number}.{each + 1}"]) for each in range(100)]


def test_the_zones_of_a_cluster_are_followed(serve: Callable[..., Server]) -> None:
    central = serve(cluster(1), corefile=CENTRE)
    node = serve(corefile=NODE.replace("$centre", str(central.port)), program=IMPATIENT)
    name, reverse = "s7.default.svc.cluster.local", "8.{}.96.10.in-addr.arpa"

    def follows(number: int) -> bool:
        addresses, pointers = node.texts(name), node.texts(reverse.format(number), "PTR")
        return addresses == [f"10.96.{number}.8"] and pointers == [f"{name}."]

    def transfers(result: str, zone: str = "cluster.local.") -> float:
        return node.metrics().value("kdns_secondary_transfers_total", zone=zone, result=result)

    node._wait(lambda: follows(1), 10, "the copies")
    for number in (2, 3, 4):
        central.write_objects(cluster(number))
        node._wait(lambda number=number: follows(number), 10, f"change {number}")
    node._wait(lambda: transfers("current") >= 2, 10, "answers that nothing is newer")
    assert (transfers("axfr"), transfers("failed")) == (1, 0)
    assert 3 <= transfers("ixfr") <= 6
    central.kill()
    assert follows(4)
    assert node.terminate() < 5


def test_a_key_is_renewed_on_both_sides_while_answers_go_on(serve: Callable[..., Server], tmp_path: Path) -> None:
    files = {side: tmp_path / f"{side}.keys" for side in ("centre", "node")}

    def write(side: str, secret: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(f'key "{KEY}" {{ secret "{secret}"; }};')
        fresh.replace(files[side])

    def start(side: str, text: str, found: list[objects.Object]) -> Server:
        write(side, SECRET)
        text = text.replace(f"secret {KEY} {SECRET}", f"secrets {files[side]}").replace(
            "tsig", "reload 100ms 0s\n tsig"
        )
        often = "from kdns.plugins import reload\nreload.MIN_INTERVAL = 0.1\n"
        return serve(found, corefile=text, program=often + IMPATIENT)

    central = start("centre", CENTRE, cluster(1))
    node = start("node", NODE.replace("$centre", str(central.port)), [])
    name = "s7.default.svc.cluster.local"
    node._wait(lambda: node.texts(name) == ["10.96.1.8"], 10, "the copy")
    seen, stop = set(), threading.Event()

    def ask() -> None:
        while not stop.wait(0.01):
            seen.update(node.texts(name) or ["none"])

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        write("centre", OTHER)
        node._wait(lambda: "NOTAUTH" in node.log, 10, "the centre's new key")
        central.write_objects(cluster(2))
        central._wait(lambda: central.texts(name) == ["10.96.2.8"], 10, "a change")
        assert node.texts(name) == ["10.96.1.8"]
        write("node", OTHER)
        node._wait(lambda: node.texts(name) == ["10.96.2.8"], 10, "the change on the node")
    finally:
        stop.set()
        asking.join()
    assert seen <= {"10.96.1.8", "10.96.2.8"}
    assert node.metrics().value("coredns_reload_failed_total") == 0
