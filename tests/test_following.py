"""Following zones on a TCP connection (`kdns.wire.following`): what a server sends, when, and to whom."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import dns.edns
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.tsig
import pytest

from kdns.wire import following
from tests.support import objects, ports, procs
from tests.support.others import ADDRESS, KEY, SECRET
from tests.support.server import Server, read_message
from tests.support.tls import Issued, connect

pytestmark = pytest.mark.one_speed

COREFILE = f"""
cluster.local:$dns in-addr.arpa:$dns {{
    bind 127.0.0.1
    errors
    ready $host:$ready
    prometheus $host:$metrics
    tsig {{
        secret {KEY} {SECRET}
    }}
    rewrite stop name old.cluster.local cluster.local
    kubernetes cluster.local in-addr.arpa {{
        manifests $manifests
    }}
    transfer cluster.local in-addr.arpa {{
        to *
    }}
}}
"""
COUNT = 300
ZONE, REVERSE = "cluster.local", "in-addr.arpa"


def cluster(round: int, count: int = COUNT) -> list[objects.Object]:
    """Services, each with the number of the round in its address."""
    return [
        objects.service(f"s{number:04}", ips=[f"10.{round % 200}.{number // 250}.{number % 250 + 1}"])
        for number in range(count)
    ]


class Follower:
    """One that follows. notifies: zones of NOTIFYs that came before what was waited for."""

    def __init__(self, server: Server, *, lineage: bytes = b"", key: dns.tsig.Key | None = None, room: int = 0) -> None:
        """room: bytes that the system keeps of what is not read."""
        self.sock = socket.socket()
        if room:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        self.sock.settimeout(10)
        self.sock.connect((ADDRESS, server.port))
        self.lineage = lineage
        self.key = key
        self.serials: dict[str, int] = {}
        self.notifies: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, query: dns.message.Message) -> None:
        data = query.to_wire()
        self.sock.sendall(struct.pack("!H", len(data)) + data)

    def query(self, zone: str, rdtype: str, serial: int | None = None, ident: int | None = None) -> int:
        """Ask for a zone; the query's ID."""
        options: list[dns.edns.Option] = [dns.edns.GenericOption(dns.edns.OptionType(following.OPTION), self.lineage)]
        query = dns.message.make_query(zone, rdtype, use_edns=0, options=options, id=ident)
        if serial is not None:
            query.authority.append(dns.rrset.from_text(zone + ".", 0, "IN", "SOA", f". . {serial} 0 0 0 0"))
        if self.key is not None:
            query.use_tsig(self.key)
        self.asked = query
        self.send(query)
        return int(query.id)

    def read(self) -> dns.message.Message:
        """The next message that is no NOTIFY; those are noted."""
        while True:
            data = read_message(self.sock)
            assert data is not None
            keyring = {self.key.name: self.key} if self.key is not None and data[2] & 0x80 else None
            mac = self.asked.mac if keyring is not None else b""
            found = dns.message.from_wire(data, keyring=keyring, request_mac=mac, xfr=True, one_rr_per_rrset=True)
            if found.opcode() != dns.opcode.NOTIFY:
                return found
            assert found.question[0].rdtype == dns.rdatatype.SOA
            self.notifies.append(found.question[0].name.to_text(omit_final_dot=True))

    def raw(self) -> bytes:
        data = read_message(self.sock)
        assert data is not None
        return data

    def first(self, zone: str, rdtype: str) -> dns.message.Message:
        """The first message of an answer."""
        self.query(zone, rdtype)
        found = self.read()
        (option,) = found.options
        self.lineage = option.to_wire()
        return found

    def send_refresh(self, zone: str) -> None:
        self.query(zone, "IXFR", self.serials[zone], ident=7)

    def transfer(self, zone: str, rdtype: str = "AXFR", serial: int | None = None) -> list[dns.message.Message]:
        """All messages of an answer. Notes the lineage and the serial."""
        ident = self.query(zone, rdtype, serial)
        found: list[dns.message.Message] = []
        while not complete(found):
            found.append(self.read())
            assert found[-1].id == ident
            assert not found[-1].rcode()
        (option,) = found[0].options
        assert option.otype == following.OPTION
        assert not any(message.options for message in found[1:])
        self.lineage = option.to_wire()
        self.serials[zone] = found[0].answer[0][0].serial
        return found

    def refresh(self, zone: str) -> list[dns.message.Message]:
        return self.transfer(zone, "IXFR", self.serials[zone])

    def notified(self, seconds: float = 5.0) -> str:
        """The zone of the next NOTIFY, which is answered."""
        self.sock.settimeout(seconds)
        data = read_message(self.sock)
        self.sock.settimeout(10)
        assert data is not None
        found = dns.message.from_wire(data)
        assert found.opcode() == dns.opcode.NOTIFY
        self.send(dns.message.make_response(found))
        return found.question[0].name.to_text(omit_final_dot=True)

    def silent_for(self, seconds: float) -> bool:
        self.sock.settimeout(seconds)
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(10)
        return False


def complete(found: list[dns.message.Message]) -> bool:
    """Whether these are all messages of a transfer: one SOA record alone, or as many as it takes."""
    records = [one for message in found for one in message.answer]
    serials = [one[0].serial for one in records if one.rdtype == dns.rdatatype.SOA]
    if len(records) == len(serials) == 1:
        return True
    if len(records) < 2:
        return False
    difference = records[1].rdtype == dns.rdatatype.SOA
    return serials.count(serials[0]) == (3 if difference else 2)


def shape(found: list[dns.message.Message]) -> str:
    records = [one for message in found for one in message.answer]
    if len(records) == 1:
        return "current"
    return "ixfr" if records[1].rdtype == dns.rdatatype.SOA else "axfr"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("following"), cluster(1), corefile=COREFILE) as running:
        yield running


@pytest.fixture
def follower(server: Server) -> Iterator[Follower]:
    with Follower(server) as found:
        yield found


def change(server: Server, round: int, count: int = 2) -> None:
    server.write_objects(
        [*cluster(1), *(objects.service(f"x{n}", ips=[f"10.{round}.9.{n + 1}"]) for n in range(count))]
    )


def test_a_zone_that_changes_is_told_of_and_asked_for(server: Server, follower: Follower) -> None:
    assert shape(follower.transfer(ZONE)) == "axfr"
    assert len(follower.lineage) == following.LINEAGE
    assert follower.silent_for(0.1)
    for round in range(2, 6):
        change(server, round)
        assert follower.notified() == ZONE
        before = follower.serials[ZONE]
        found = follower.refresh(ZONE)
        assert shape(found) == "ixfr"
        assert follower.serials[ZONE] > before
        assert f"10.{round}.9.1" in str(found[0])
    assert shape(follower.refresh(ZONE)) == "current"
    assert follower.silent_for(0.1)


def test_who_has_not_asked_is_not_told_again(server: Server, follower: Follower) -> None:
    follower.transfer(ZONE)
    for round in range(10, 15):
        change(server, round)
        wanted = [f"10.{round}.9.1"]
        server._wait(lambda wanted=wanted: server.texts("x0.default.svc.cluster.local") == wanted, 5, "a change")
    assert follower.notified() == ZONE
    assert follower.silent_for(0.1)
    assert shape(follower.refresh(ZONE)) == "ixfr"
    change(server, 15)
    assert follower.notified() == ZONE


def test_whoever_has_another_lineage_gets_all(server: Server, follower: Follower) -> None:
    follower.transfer(ZONE)
    serial, lineage = follower.serials[ZONE], follower.lineage
    for other in (b"", b"12345678"):
        follower.lineage = other
        assert shape(follower.transfer(ZONE, "IXFR", serial)) == "axfr"
        assert follower.lineage == lineage
    assert shape(follower.transfer(ZONE, "IXFR", serial + 7)) == "axfr"  # which was never there
    assert shape(follower.transfer(ZONE, "IXFR", serial)) == "current"


def test_each_message_is_signed_but_for_notifies(server: Server) -> None:
    with Follower(server, key=dns.tsig.Key(KEY, SECRET, "hmac-sha256")) as follower:
        assert shape([follower.first(ZONE, "AXFR")]) == "axfr"
    with Follower(server, key=dns.tsig.Key(KEY, SECRET, "hmac-sha256"), lineage=follower.lineage) as follower:
        follower.serials[ZONE] = int(server.query(ZONE, "SOA").answer[0][0].serial)
        assert shape(follower.refresh(ZONE)) == "current"
        change(server, 20)
        assert follower.notified() == ZONE
        found = follower.refresh(ZONE)
        assert shape(found) == "ixfr"
        assert all(message.had_tsig for message in found)


def test_two_zones_are_followed_on_one_connection(server: Server, follower: Follower) -> None:
    for zone in (ZONE, REVERSE):
        assert shape(follower.transfer(zone)) == "axfr"
    change(server, 30)
    assert {follower.notified(), follower.notified()} == {ZONE, REVERSE}
    assert follower.silent_for(0.1)
    assert shape(follower.refresh(REVERSE)) == "ixfr"
    change(server, 31)
    assert follower.notified() == REVERSE  # the other one was not asked for
    assert follower.silent_for(0.1)
    assert shape(follower.refresh(ZONE)) == "ixfr"
    change(server, 32)
    assert follower.notified() == ZONE
    server.write_objects(cluster(1))  # one zone is another
    assert shape(follower.refresh(ZONE)) == "ixfr"


def test_notifies_come_between_the_messages_of_transfers(server: Server) -> None:
    with Follower(server, room=4096) as follower:
        server.write_objects(cluster(1, 1500))
        server._wait(lambda: server.texts("s1499.default.svc.cluster.local"), 10, "the cluster")
        follower.transfer(REVERSE)
        for number in range(40):  # more than the system has room for
            follower.query(ZONE, "AXFR", ident=number)
        found = [follower.raw()]
        server.write_objects([*cluster(1, 1500), objects.service("late", ips=["10.77.0.1"])])
        server._wait(lambda: server.texts("late.default.svc.cluster.local"), 10, "a change")
        while not (is_notify(found[-1]) and b"in-addr" in found[-1]):
            found.append(follower.raw())
        while is_notify(found[-1]):
            found.append(follower.raw())
        around = found[-1][:2]
        while found[-1][:2] != around or len(found[-1]) > 12_000:  # the last one is smaller
            found.append(follower.raw())
        assert complete(parsed(found, around))
        assert shape(parsed(found, around)) == "axfr"
    server.write_objects(cluster(1))
    server._wait(lambda: not server.texts("s1499.default.svc.cluster.local"), 10, "the end of it")


def is_notify(data: bytes) -> bool:
    return data[2] & 0xF8 == 0x20


def parsed(found: list[bytes], ident: bytes) -> list[dns.message.Message]:
    """The messages with an ID that are no NOTIFYs."""
    wanted = [data for data in found if data[:2] == ident and not is_notify(data)]
    return [dns.message.from_wire(data, xfr=True, one_rr_per_rrset=True) for data in wanted]


def test_one_that_takes_nothing_is_in_nobodys_way(server: Server, follower: Follower) -> None:
    with Follower(server, room=4096) as lazy:
        follower.transfer(ZONE)
        follower.refresh(ZONE)  # it may have got the zone as it was a few seconds ago
        lazy.transfer(ZONE)
        for number in range(200):
            lazy.query(ZONE, "AXFR", ident=number)
        for round in range(40, 44):
            change(server, round)
            assert follower.notified(1) == ZONE
            assert shape(follower.refresh(ZONE)) == "ixfr"
        assert server.metrics().value("kdns_followers") == 2


def test_five_hundred_are_told_of_a_change_once_each(server: Server) -> None:
    metrics = server.metrics()
    sent = metrics.value("kdns_notifies_total", result="sent")
    answered = metrics.value("kdns_notifies_total", result="answered")
    differences = metrics.value("kdns_transfers_total", result="ixfr")
    with Follower(server) as one, contextlib.ExitStack() as stack:
        one.transfer(ZONE)
        many = [stack.enter_context(Follower(server, lineage=one.lineage)) for _ in range(500)]
        for follower in many:
            follower.serials[ZONE] = one.serials[ZONE]
            follower.send_refresh(ZONE)
        for follower in many:
            assert len(follower.raw()) < 150  # "current"
        assert server.metrics().value("kdns_followers") == 501
        change(server, 50)
        for follower in many:
            assert follower.raw()[2:4] == b"\x24\0"
            follower.sock.sendall(b"\0\x0c" + b"\0\0\xa4\0" + bytes(8))
            follower.send_refresh(ZONE)
        answers = {follower.raw()[2:] for follower in many}
        assert len(answers) == 1
        assert "10.50.9.1" in str(dns.message.from_wire(b"\0\0" + answers.pop(), xfr=True))
        after = server.metrics()
        assert after.value("kdns_notifies_total", result="sent") == sent + 501
        assert after.value("kdns_notifies_total", result="answered") == answered + 500
        assert after.value("kdns_transfers_total", result="ixfr") == differences + 500
    procs.wait_until(lambda: server.metrics().value("kdns_followers") == 0, 5, "their end")


def test_an_answer_to_nothing_is_no_message_of_a_follower(server: Server, follower: Follower) -> None:
    follower.transfer(ZONE)
    before = server.metrics().value("kdns_malformed_total", reason="response")
    follower.sock.sendall((b"\0\x0c" + b"\0\0\xa4\0" + bytes(8)) * 99)
    assert shape(follower.refresh(ZONE)) == "current"
    assert server.metrics().value("kdns_malformed_total", reason="response") == before + 99


def test_who_does_not_ask_to_follow_does_not(server: Server) -> None:
    with server.tcp_socket() as sock:
        sock.settimeout(10)
        data = dns.message.make_query(REVERSE, "AXFR", use_edns=0).to_wire()
        for option in (b"", b"\xfe\x1d\0\3abc"):  # none, and one that is no lineage
            asked = data[:-2] + len(option).to_bytes(2, "big") + option
            sock.sendall(struct.pack("!H", len(asked)) + asked)
            found: list[dns.message.Message] = []
            while not complete(found):
                found.append(dns.message.from_wire(read_message(sock) or b"", xfr=True, one_rr_per_rrset=True))
            assert not any(message.options for message in found)
        assert server.metrics().value("kdns_followers") == 0


def test_what_is_refused_is_not_followed(server: Server, follower: Follower) -> None:
    for zone, rcode in (("svc.cluster.local", "NOTAUTH"), ("other.test", "REFUSED"), ("old.cluster.local", "REFUSED")):
        follower.query(zone, "AXFR")
        found = follower.read()
        assert dns.rcode.to_text(dns.rcode.Rcode(found.rcode())) == rcode
        assert not found.options
    assert server.metrics().value("kdns_followers") == 0


def test_it_goes_over_tls(serve: Callable[..., Server], tmp_path: Path) -> None:
    issued = Issued(tmp_path)
    port = ports.free_port([ADDRESS])
    secure = COREFILE.replace("cluster.local:$dns in-addr.arpa:$dns", f"tls://cluster.local:{port}")
    secure = secure.replace("    ready", f"    tls {tmp_path}/server.crt {tmp_path}/server.key\n    ready")
    server = serve(cluster(1, 5), corefile=secure + "whoami.test:$dns {\n    whoami\n}\n")
    with Follower(server) as follower:
        follower.sock.close()
        follower.sock = connect(port, issued.client(), 10)
        assert shape(follower.transfer(ZONE)) == "axfr"
        server.write_objects(cluster(2, 5))
        assert follower.notified() == ZONE
        assert shape(follower.refresh(ZONE)) == "ixfr"


def test_a_lineage_is_that_of_the_store(serve: Callable[..., Server]) -> None:
    server = serve(cluster(1, 5), corefile=COREFILE)
    with Follower(server) as first:
        first.transfer(ZONE)
    server.kill()
    server.start()
    with Follower(server, lineage=first.lineage) as second:
        second.serials = first.serials
        change(server, 60)
        assert shape(second.refresh(ZONE)) in ("current", "ixfr")
        assert second.lineage == first.lineage
    server.kill()
    for file in server.state_dir.iterdir():
        file.unlink()
    server.start()
    with Follower(server, lineage=first.lineage) as third:
        third.serials = second.serials
        assert shape(third.refresh(ZONE)) == "axfr"
        assert third.lineage != first.lineage
