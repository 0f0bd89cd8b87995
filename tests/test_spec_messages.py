"""Messages, row by row: what is asked well, badly, too large, too slowly, and from which address it is answered."""

from __future__ import annotations

import contextlib
import random
import resource
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest

from kdns.plugins.timeouts import Limits
from kdns.server import tcp as tcp_side
from tests.conftest import Serve
from tests.support import procs
from tests.support.ask import told
from tests.support.netns import Netns
from tests.support.objects import Object, endpoint, endpoint_slice, external_name, service
from tests.support.server import COREFILE, Server, read_message

NS = "default.svc.cluster.local"
WEB = f"web.{NS}"
ZONE_ONLY = COREFILE.replace(".:$dns {", "cluster.local:$dns 96.10.in-addr.arpa:$dns {")
"""Unlike COREFILE, this leaves names that have no server block."""
A, AAAA, SRV, PTR, ANY, AXFR, IXFR, SOA = 1, 28, 33, 12, 255, 252, 251, 6
IN = 1
ID = b"\x5a\xa5"
OPT = b"\0\x00\x29\x04\xd0\0\0\0\0\0\0"
MANY = 300
TRANSPORTS = pytest.mark.parametrize("proto", ["udp", "tcp"])


def cluster() -> list[Object]:
    many = [endpoint(f"10.1.{number // 250}.{number % 250}", hostname=f"host-{number}") for number in range(MANY)]
    many6 = [endpoint(f"fd00::{number + 1:x}", hostname=f"host-{number}") for number in range(MANY)]
    some = [endpoint(f"10.2.0.{number}", hostname=f"h{number:02}") for number in range(20)]
    return [
        service("web", ips=("10.96.0.10", "fd00:96::10")),
        service("big", ips=()),
        endpoint_slice("big", many),
        endpoint_slice("big", many6, suffix="6", address_type="IPv6"),
        service("some", ips=()),
        endpoint_slice("some", some),
        external_name("out", "api.example.com"),
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("messages"), cluster(), corefile=ZONE_ONLY, plugins="# none") as started:
        yield started


def wire_name(text: str) -> bytes:
    return dns.name.from_text(text).to_wire() or b""


def header(
    flags: int = 0x0100, questions: int = 1, answers: int = 0, authorities: int = 0, additionals: int = 0
) -> bytes:
    return ID + struct.pack("!5H", flags, questions, answers, authorities, additionals)


def question(name: str | bytes = WEB, rtype: int = A, klass: int = IN) -> bytes:
    owner = name if isinstance(name, bytes) else wire_name(name)
    return owner + struct.pack("!HH", rtype, klass)


def plain(name: str | bytes = WEB, rtype: int = A, klass: int = IN, flags: int = 0x0100) -> bytes:
    return header(flags) + question(name, rtype, klass)


def send(server: Server, proto: str, data: bytes) -> bytes:
    """The response to a message that has to get one."""
    replies = [server.raw_udp(data)] if proto == "udp" else server.raw_tcp(data)
    assert replies, f"no answer to {data.hex()}"
    assert replies[0] is not None, f"no answer to {data.hex()}"
    return replies[0]


def rcode(wire: bytes) -> str:
    return dns.rcode.to_text(dns.message.from_wire(wire).rcode())


def counts(wire: bytes) -> tuple[int, ...]:
    return struct.unpack_from("!4H", wire, 4)


# Shorter than a header, or QR set

SILENT = [ID + b"\x01", header()[:-1], b"\0", plain(flags=0x8100), plain(flags=0x8000), header(0x8180, 0)]


def test_what_is_short_or_a_response_gets_no_answer_over_udp(server: Server) -> None:
    with server.udp_socket() as sock:
        sock.settimeout(2)
        sock.send(b"")
        for data in SILENT:
            sock.send(data)
        sock.send(b"\xff\xff" + plain()[2:])
        assert sock.recv(65535)[:2] == b"\xff\xff"
        assert not select.select([sock], [], [], 0.1)[0]


def test_what_is_short_or_a_response_gets_no_answer_over_tcp_and_the_connection_goes_on(server: Server) -> None:
    replies = server.raw_tcp(b"", *SILENT, b"\xff\xff" + plain()[2:], timeout=0.5)
    assert [reply[:2] for reply in replies] == [b"\xff\xff"]


# Opcodes


@TRANSPORTS
@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 6, 15])
def test_other_opcodes_are_not_implemented(server: Server, proto: str, opcode: int) -> None:
    data = plain(flags=opcode << 11 | 0x0100)
    wire = send(server, proto, data)
    assert wire[:2] == ID
    flags = struct.unpack_from("!H", wire, 2)[0]
    assert flags == 0x8100 | opcode << 11 | dns.rcode.NOTIMP
    assert wire[4:] == struct.pack("!4H", 1, 0, 0, 0) + data[12:]


# Questions

LABEL_63, LABEL_64 = b"\x3f" + b"a" * 63, b"\x40" + b"a" * 64
LONGEST = LABEL_63 * 3 + b"\x2f" + b"a" * 47 + wire_name("cluster.local")
BROKEN = {
    "no question": header(questions=0),
    "no question, but its bytes": header(questions=0) + question(),
    "two questions": header(questions=2) + question() + question(),
    "two questions, one there": header(questions=2) + question(),
    "a pointer": plain(b"\xc0\x0c"),
    "a pointer behind a label": plain(b"\x03web\xc0\x0c"),
    "a pointer into the header": plain(b"\x03web\xc0\x00"),
    "label type 01": plain(b"\x43web\0"),
    "label type 10": plain(b"\x83web\0"),
    "a label of 64 bytes": plain(LABEL_64 + wire_name("cluster.local")),
    "a name of 256 bytes": plain(LABEL_63 * 3 + b"\x30" + b"a" * 48 + wire_name("cluster.local")),
    "a name without an end": header() + wire_name(WEB)[:-1],
    "a label that is cut": header() + b"\x09web",
    "no type": header() + wire_name(WEB),
    "no class": plain()[:-2],
    "half a class": plain()[:-1],
    "trailing bytes": plain() + b"\0",
    "many trailing bytes": plain() + b"trailing" * 100,
    "a record that is not there": header(additionals=1) + question(),
    "a record that is cut": header(additionals=1) + question() + OPT[:-1],
    "trailing bytes behind a record": header(additionals=1) + question() + OPT + b"\0",
    "two OPTs": header(additionals=2) + question() + OPT * 2,
    "an OPT among the answers": header(answers=1) + question() + OPT,
    "an OPT with a name": header(additionals=1) + question() + b"\x03web" + OPT,
    "an EDNS option that is cut": header(additionals=1) + question() + OPT[:-2] + b"\0\x05\xfd\xe9\0\x02x",
}


@TRANSPORTS
@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_broken_message_is_a_format_error(server: Server, proto: str, data: bytes) -> None:
    wire = send(server, proto, data)
    assert wire[:2] == ID
    assert struct.unpack_from("!H", wire, 2)[0] == 0x8100 | dns.rcode.FORMERR
    assert counts(wire)[1:] == (0, 0, 0)
    assert wire[12:] in (b"", question(), data[12 : len(wire)])


def test_a_broken_message_does_not_end_the_connection(server: Server) -> None:
    replies = server.raw_tcp(*BROKEN.values(), b"\xff\xff" + plain()[2:])
    assert [rcode(reply) for reply in replies] == ["FORMERR"] * len(BROKEN) + ["NOERROR"]


ODD_NAMES = {
    "255 bytes": LONGEST,
    "127 labels": b"\x01a" * 120 + wire_name("cluster.local")[:-1] + b"\0",
    "NUL": b"\x03w\0b" + wire_name(NS),
    "NUL alone": b"\x01\0" + wire_name(NS),
    "a dot": b"\x07web.def" + wire_name(NS),
    "0xff": b"\x03\xff\xfe\x80" + wire_name(NS),
    "blanks and quotes": b'\x05 "\\\t\n' + wire_name(NS),
    "a label that looks like a key": b"\x05a\x00b\x01c" + wire_name(NS),
    "a star": b"\x01*" + wire_name(NS),
}


@TRANSPORTS
@pytest.mark.parametrize("name", [pytest.param(name, id=key) for key, name in ODD_NAMES.items() if len(name) <= 255])
def test_labels_of_any_bytes_are_names_that_do_not_exist(server: Server, proto: str, name: bytes) -> None:
    data = plain(name)
    for _ in range(3):
        wire = send(server, proto, data)
        assert rcode(wire) == "NXDOMAIN"
        assert wire[12 : len(data)] == data[12:]
        assert counts(wire) == (1, 0, 1, 0)


def test_the_names_above_are_as_long_as_they_say() -> None:
    assert len(LONGEST) == 255
    assert all(len(name) <= 255 for name in ODD_NAMES.values())


# Classes and zones


@TRANSPORTS
@pytest.mark.parametrize("klass", [3, 4, 254, 255, 0, 2, 65535], ids=["CH", "HS", "NONE", "ANY", "0", "2", "65535"])
def test_other_classes_are_refused(server: Server, proto: str, klass: int) -> None:
    for name in (WEB, "version.bind"):
        wire = send(server, proto, plain(name, 16, klass))
        assert struct.unpack_from("!H", wire, 2)[0] == 0x8100 | dns.rcode.REFUSED
        assert counts(wire) == (1, 0, 0, 0)


@TRANSPORTS
@pytest.mark.parametrize("name", ["example.com", "local", ".", "cluster.local.example.com", "xcluster.local", "arpa"])
def test_a_name_without_a_server_block_is_refused(server: Server, proto: str, name: str) -> None:
    wire = send(server, proto, plain(name))
    assert struct.unpack_from("!H", wire, 2)[0] == 0x8100 | dns.rcode.REFUSED
    assert counts(wire) == (1, 0, 0, 0)


# ANY and transfers


def test_any_over_udp_is_one_small_record(server: Server) -> None:
    for _ in range(3):
        message = dns.message.from_wire(send(server, "udp", plain(rtype=ANY)))
        assert [dns.rdatatype.to_text(rrset.rdtype) for rrset in message.answer] == ["HINFO"]
        assert '"RFC8482"' in message.answer[0].to_text()
        assert message.answer[0].ttl == 5
        assert message.flags & dns.flags.AA
    assert len(send(server, "udp", plain(f"big.{NS}", ANY))) < 100


def test_any_over_tcp_is_everything(server: Server) -> None:
    message = dns.message.from_wire(send(server, "tcp", plain(rtype=ANY)))
    assert told(message).answer == [f"{WEB}. A 10.96.0.10", f"{WEB}. AAAA fd00:96::10", f"{WEB}. SRV 0 100 80 {WEB}."]
    big = dns.message.from_wire(send(server, "tcp", plain(f"big.{NS}", ANY)))
    assert sum(len(rrset) for rrset in big.answer) == 3 * MANY


@TRANSPORTS
def test_any_of_a_name_without_records_is_as_negative_as_any_type(server: Server, proto: str) -> None:
    for name, wanted in ((NS, "NOERROR"), (f"gone.{NS}", "NXDOMAIN")):
        message = told(dns.message.from_wire(send(server, proto, plain(name, ANY))))
        assert (message.rcode, message.answer, len(message.authority)) == (wanted, [], 1)


@TRANSPORTS
def test_transfers_are_refused(server: Server, proto: str) -> None:
    axfr = plain("cluster.local", AXFR)
    serial = b"\xc0\x0c" + struct.pack("!HHIH", SOA, IN, 0, 22) + b"\0\0" + struct.pack("!5I", 1, 2, 3, 4, 5)
    ixfr = header(authorities=1) + question("cluster.local", IXFR) + serial
    for data in (axfr, ixfr):
        wire = send(server, proto, data)
        assert struct.unpack_from("!H", wire, 2)[0] == 0x8100 | dns.rcode.REFUSED
        assert counts(wire) == (1, 0, 0, 0)


# Flags


@TRANSPORTS
def test_rd_is_copied_ra_is_not_set_and_cd_is_copied(server: Server, proto: str) -> None:
    for flags, back in ((0, 0x8400), (0x0100, 0x8500), (0x0110, 0x8510), (0x0170, 0x8510), (0x07FF & ~0x0200, 0x8510)):
        wire = send(server, proto, plain(flags=flags))
        assert struct.unpack_from("!H", wire, 2)[0] == back, f"{flags:04x}"


def test_each_query_gets_its_own_id(server: Server) -> None:
    with server.udp_socket() as sock:
        sock.settimeout(2)
        for number in random.Random(7).sample(range(65536), 50):
            sock.send(number.to_bytes(2, "big") + plain()[2:])
            assert int.from_bytes(sock.recv(65535)[:2], "big") == number


# EDNS


def with_opt(
    size: int = 1232, *, version: int = 0, flags: int = 0, options: bytes = b"", name: str = WEB, rtype: int = A
) -> bytes:
    opt = b"\0" + struct.pack("!HHBBHH", 41, size, 0, version, flags, len(options)) + options
    return header(additionals=1) + question(name, rtype) + opt


def opt_of(wire: bytes) -> tuple[int, int, int, int, bytes]:
    """UDP size, upper response code, version, flags, options of the OPT, which has to be the last record."""
    assert counts(wire)[3] >= 1
    at = wire.rindex(b"\0\x00\x29")
    size, upper, version, flags, length = struct.unpack_from("!HBBHH", wire, at + 3)
    assert at + 11 + length == len(wire)
    return size, upper, version, flags, wire[at + 11 :]


@TRANSPORTS
def test_an_opt_is_answered_with_ours_and_no_opt_with_none(server: Server, proto: str) -> None:
    for name in (WEB, f"gone.{NS}", NS, "example.com"):
        bare = send(server, proto, plain(name))
        assert counts(bare)[3] == 0
        wire = send(server, proto, with_opt(name=name))
        assert counts(wire)[3] == 1
        assert opt_of(wire) == (1232, 0, 0, 0, b"")
        assert wire[2:10] == bare[2:10]


@TRANSPORTS
def test_do_is_echoed_and_other_flags_are_not(server: Server, proto: str) -> None:
    assert opt_of(send(server, proto, with_opt(flags=0x8000)))[3] == 0x8000
    assert opt_of(send(server, proto, with_opt(flags=0xFFFF)))[3] == 0x8000
    assert opt_of(send(server, proto, with_opt(flags=0x7FFF)))[3] == 0


@TRANSPORTS
@pytest.mark.parametrize("version", [1, 2, 255])
def test_a_later_version_of_edns_is_badvers(server: Server, proto: str, version: int) -> None:
    for name in (WEB, "example.com"):
        wire = send(server, proto, with_opt(version=version, flags=0x8000, name=name))
        assert rcode(wire) == "BADVERS"
        assert opt_of(wire) == (1232, 1, 0, 0x8000, b"")
        assert counts(wire) == (1, 0, 0, 1)


@TRANSPORTS
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(struct.pack("!HH", 65001, 4) + b"abcd", id="unknown"),
        pytest.param(struct.pack("!HH", 65001, 0) * 3, id="unknown, thrice"),
        pytest.param(struct.pack("!HH", 10, 8) + b"cookie!!", id="cookie"),
        pytest.param(struct.pack("!HH", 8, 7) + b"\0\x01\x18\0\x0a\x01\x02", id="client subnet"),
        pytest.param(struct.pack("!HH", 12, 64) + bytes(64), id="padding"),
        pytest.param(struct.pack("!HH", 3, 0), id="nsid, which is off"),
    ],
)
def test_options_that_we_do_not_know_are_ignored(server: Server, proto: str, options: bytes) -> None:
    assert send(server, proto, with_opt(options=options)) == send(server, proto, with_opt())


def test_other_records_in_a_query_are_ignored(server: Server) -> None:
    extra = b"\xc0\x0c" + struct.pack("!HHIH", A, IN, 0, 4) + b"\x7f\0\0\x01"
    data = header(answers=1, authorities=1, additionals=1) + question() + extra * 3
    assert send(server, "udp", data) == send(server, "udp", plain())


# Truncation


@dataclass(frozen=True)
class Size:
    """offered: the client's UDP size, None without an OPT. limit: what the answer may take."""

    offered: int | None
    limit: int


SIZES = [
    Size(None, 512), Size(0, 512), Size(100, 512), Size(511, 512), Size(512, 512), Size(513, 513), Size(527, 527),
    Size(528, 528), Size(600, 600), Size(850, 850), Size(1000, 1000), Size(1231, 1231), Size(1232, 1232),
    Size(1233, 1232), Size(4096, 1232), Size(65535, 1232),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("rtype", "step"), [(A, 16), (AAAA, 28)], ids=["A", "AAAA"])
def test_as_many_addresses_as_fit_are_sent_over_udp_with_tc(server: Server, size: Size, rtype: int, step: int) -> None:
    name = f"big.{NS}"
    data = plain(name, rtype) if size.offered is None else with_opt(size.offered, name=name, rtype=rtype)
    whole = {rdata for rrset in dns.message.from_wire(send(server, "tcp", data)).answer for rdata in rrset}
    assert len(whole) == MANY
    for _ in range(3):
        wire = send(server, "udp", data)
        message = dns.message.from_wire(wire)
        room = size.limit - len(plain(name)) - (0 if size.offered is None else 11)
        assert message.flags & dns.flags.TC
        assert message.rcode() == dns.rcode.NOERROR
        sent = [rdata for rrset in message.answer for rdata in rrset]
        assert len(sent) == len(set(sent)) == room // step
        assert set(sent) <= whole
        assert len(wire) <= size.limit < len(wire) + step
        assert message.edns == (-1 if size.offered is None else 0)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_as_many_srv_records_as_fit_are_sent_over_udp_with_tc(server: Server, size: Size) -> None:
    name = f"_http._tcp.big.{NS}"
    data = plain(name, SRV) if size.offered is None else with_opt(size.offered, name=name, rtype=SRV)
    full = dns.message.from_wire(send(server, "tcp", data), one_rr_per_rrset=True).answer
    assert len(full) == MANY
    wire = send(server, "udp", data)
    message = dns.message.from_wire(wire, one_rr_per_rrset=True)
    sent = message.answer
    assert message.flags & dns.flags.TC
    assert sent == full[: len(sent)]
    following = 2 + 10 + len(full[len(sent)][0].to_wire() or b"")
    assert len(wire) <= size.limit < len(wire) + following


@pytest.mark.parametrize(
    ("rtype", "name"), [(A, "big"), (AAAA, "big"), (SRV, "_http._tcp.big")], ids=["A", "AAAA", "SRV"]
)
def test_a_record_fits_if_it_ends_with_the_last_byte(server: Server, rtype: int, name: str) -> None:
    def sent(size: int) -> tuple[int, int]:
        wire = send(server, "udp", with_opt(size, name=f"{name}.{NS}", rtype=rtype))
        return len(wire), counts(wire)[1]

    for size in (700, 900, 1100):
        length, count = sent(size)
        assert sent(length) == (length, count)
        assert sent(length - 1)[1] == count - 1


def test_additional_records_that_do_not_fit_set_tc_too(server: Server) -> None:
    name = f"_http._tcp.some.{NS}"
    wire = send(server, "udp", with_opt(name=name, rtype=SRV))
    message = dns.message.from_wire(wire)
    assert message.flags & dns.flags.TC
    assert len(message.answer[0]) == 20
    assert 0 < len(message.additional) < 20
    whole = dns.message.from_wire(send(server, "tcp", with_opt(name=name, rtype=SRV)))
    assert (len(whole.answer[0]), len(whole.additional)) == (20, 20)


def test_everything_comes_whole_over_tcp_without_tc(server: Server) -> None:
    for rtype, name in ((A, f"big.{NS}"), (AAAA, f"big.{NS}"), (SRV, f"_http._tcp.big.{NS}")):
        message = dns.message.from_wire(send(server, "tcp", plain(name, rtype)))
        assert len(message.answer[0]) == MANY
        assert not message.flags & dns.flags.TC
    assert sum(len(rrset) for rrset in message.additional) == 2 * MANY


# TCP


def framed(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data


def test_a_hundred_pipelined_queries_are_answered_on_one_connection(server: Server) -> None:
    names = [WEB, f"gone.{NS}", f"big.{NS}", f"out.{NS}", "example.com"]
    queries = [struct.pack("!H", number) + plain(names[number % len(names)])[2:] for number in range(100)]
    replies = server.raw_tcp(*queries)
    assert sorted(struct.unpack_from("!H", reply)[0] for reply in replies) == list(range(100))
    wanted = {0: "NOERROR", 1: "NXDOMAIN", 2: "NOERROR", 3: "NOERROR", 4: "REFUSED"}
    for reply in replies:
        number = struct.unpack_from("!H", reply)[0]
        message = dns.message.from_wire(reply)
        assert str(message.question[0].name) == f"{names[number % len(names)]}."
        assert dns.rcode.to_text(message.rcode()) == wanted[number % len(names)]
        assert len(message.answer[0]) == MANY if number % len(names) == 2 else True


def test_a_query_may_come_byte_by_byte(server: Server) -> None:
    with server.tcp_socket() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in framed(plain()):
            sock.sendall(bytes((byte,)))
            time.sleep(0.001)
        assert rcode(read_message(sock) or b"") == "NOERROR"


def test_the_answers_come_even_if_the_client_has_closed_its_side(server: Server) -> None:
    with server.tcp_socket() as sock:
        sock.sendall(framed(plain(f"big.{NS}")) * 1000)
        sock.shutdown(socket.SHUT_WR)
        replies = [read_message(sock) for _ in range(1000)]
        assert all(reply is not None and len(reply) > 16 * MANY for reply in replies)
        assert sock.recv(1) == b""


def test_a_connection_stays_open_for_more_queries(server: Server) -> None:
    with server.tcp_socket() as sock:
        for _ in range(20):
            sock.sendall(framed(plain()))
            assert rcode(read_message(sock) or b"") == "NOERROR"


class Waiting:
    """Connections that all began at one time, and what the server counted as their ends before."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.before = self.reasons()
        self.start = time.monotonic()
        self.sockets: dict[str, socket.socket] = {}

    def open(self, name: str, data: bytes) -> None:
        sock = self.server.tcp_socket(timeout=20)
        sock.sendall(data)
        self.sockets[name] = sock

    def reasons(self) -> dict[str, float]:
        metrics = self.server.metrics()
        reasons = ("idle", "incomplete", "slow", "crowded")
        return {reason: metrics.value("kdns_tcp_connections_closed_total", reason=reason) for reason in reasons}


def test_the_idle_the_incomplete_and_the_slow_are_closed_and_the_busy_are_not(
    server: Server, needs: Callable[..., None]
) -> None:
    """One test, so that they wait at the same time. The limits are those without `timeouts`, and a sweep of 0.5 s."""
    needs("ss")
    waiting = Waiting(server)
    waiting.open("half a prefix", b"\0")
    waiting.open("half a message", framed(plain())[:-1])
    waiting.open("half a message behind a whole one", framed(plain()) + framed(plain())[:-1])
    waiting.open("drips", framed(plain())[:2])
    waiting.open("idle", b"")
    waiting.open("idle after a query", framed(plain()))
    waiting.open("busy", framed(plain()))
    slow = waiting.sockets["slow"] = slow_reader(server)
    late, due = reader_with_little_due(server)
    waiting.sockets["late"] = late
    late.shutdown(socket.SHUT_WR)
    busy = waiting.sockets["busy"]
    # Each second the rest of a query and the beginning of the next.
    waiting.open("always in the middle", framed(plain())[:5])
    middle = waiting.sockets["always in the middle"]
    assert rcode(read_message(busy) or b"") == "NOERROR"
    ended = {}
    pending = {
        name: sock
        for name, sock in waiting.sockets.items()
        if name not in ("busy", "always in the middle", "slow", "late")
    }
    step = 0
    while (now := time.monotonic() - waiting.start) < Limits().idle + 6 and pending:
        if int(now) > step:  # once a second
            step = int(now)
            busy.sendall(framed(plain()))
            assert rcode(read_message(busy) or b"") == "NOERROR"
            middle.sendall(framed(plain())[5:] + framed(plain())[:5])
            assert rcode(read_message(middle) or b"") == "NOERROR"
            if "drips" in pending:  # a byte a second does not make the message complete in time
                with contextlib.suppress(OSError):
                    pending["drips"].sendall(b"\0")
        for sock in select.select(list(pending.values()), [], [], 0.05)[0]:
            name = next(name for name, other in pending.items() if other is sock)
            if not received(sock):
                ended[name] = time.monotonic() - waiting.start
                del pending[name]
    assert not pending, f"still open: {list(pending)}"
    assert_within(ended.pop("idle"), Limits().idle)
    assert_within(ended.pop("idle after a query"), Limits().idle)
    for seconds in ended.values():
        assert_within(seconds, Limits().read)
    left = {"busy", "always in the middle"}
    procs.wait_until(lambda: server.metrics().value("kdns_tcp_connections") == len(left), 8, f"only {left}", 0.1)
    assert took_all(slow) < SLOW_QUERIES
    assert took_all(late) < due
    after = waiting.reasons()
    assert {reason: after[reason] - waiting.before[reason] for reason in after} == {
        "idle": 2,
        "incomplete": 4,
        "slow": 1,
        "crowded": 0,
    }
    busy.sendall(framed(plain()))
    assert rcode(read_message(busy) or b"") == "NOERROR"
    for sock in waiting.sockets.values():
        sock.close()


def assert_within(seconds: float, limit: float) -> None:
    assert limit <= seconds < limit + 4.5


def received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except ConnectionResetError:
        return b""


SLOW_QUERIES = 2000


def slow_reader(server: Server) -> socket.socket:
    """A client that asks for much more than the sockets' buffers hold (some 30 MB) and takes nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(5)
    sock.connect(("127.0.0.1", server.port))
    sock.setblocking(False)
    data = framed(plain(f"_http._tcp.big.{NS}", SRV)) * SLOW_QUERIES
    sent = 0
    while sent < len(data) and select.select([], [sock], [], 0.5)[1]:
        sent += sock.send(data[sent:])
    return sock


def reader_with_little_due(server: Server) -> tuple[socket.socket, int]:
    """A client that takes nothing, and asks until the sockets' buffers are just full; and how many answers are due.

    What the server itself still holds is then less than what makes it stop to read.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(5)
    sock.connect(("127.0.0.1", server.port))
    query = plain(f"_http._tcp.big.{NS}", SRV)
    size = 2 + len(send(server, "tcp", query))
    count = 0
    held = 0
    while held == count * size and count < 1000:
        count += 1
        sock.sendall(framed(query))
        deadline = time.monotonic() + 1.5
        while (held := in_kernel(sock)) != count * size and time.monotonic() < deadline:
            time.sleep(0.002)  # until the answer has left the server, if it does
    # The kernel may still find room for a little.
    sock.sendall(framed(query) * 4)
    assert 4 * size < (count + 4) * size - held < tcp_side.UNSENT
    return sock, count + 4


def in_kernel(client: socket.socket) -> int:
    """Bytes of answers in the server's send queue and the client's receive queue.

    ss lets the kernel look for the two sockets; /proc/net/tcp shows what other tests have left in TIME_WAIT as well.
    """
    near, far = client.getsockname()[1], client.getpeername()[1]
    wanted = f"( sport = :{near} and dport = :{far} ) or ( sport = :{far} and dport = :{near} )"
    command = ["ss", "--no-header", "--numeric", "--tcp", "exclude", "time-wait", wanted]
    found = 0
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        _, received, queued, local, _ = line.split()
        found += int(received if local.endswith(f":{near}") else queued)
    return found


def took_all(sock: socket.socket) -> int:
    """How many whole answers still come until the connection ends."""
    sock.settimeout(5)
    count = 0
    with contextlib.suppress(ConnectionResetError):
        while read_message(sock) is not None:
            count += 1
    return count


def test_while_a_client_does_not_read_others_are_answered(server: Server) -> None:
    with slow_reader(server):
        start = time.monotonic()
        for _ in range(20):
            assert rcode(send(server, "tcp", plain())) == "NOERROR"
            assert rcode(send(server, "udp", plain())) == "NOERROR"
        assert time.monotonic() - start < 2


def test_a_client_that_reads_late_gets_everything(server: Server) -> None:
    with server.tcp_socket() as sock:
        sock.setblocking(False)
        data = framed(plain(f"big.{NS}")) * 1000
        sent = 0
        count = 0
        got = bytearray()
        deadline = time.monotonic() + 20
        while count < 1000 and time.monotonic() < deadline:
            readable, writable, _ = select.select([sock], [sock] if sent < len(data) else [], [], 1)
            if writable:
                sent += sock.send(data[sent : sent + 65536])
            if readable and sent == len(data):
                got += sock.recv(1 << 16)
            elif readable and not writable:
                got += sock.recv(4096)
            while len(got) >= 2 and len(got) >= (size := 2 + int.from_bytes(got[:2], "big")):
                del got[:size]
                count += 1
        assert count == 1000


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for the connections of a test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = tcp_side.CONNECTIONS + 200
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"this process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_with_too_many_connections_the_one_that_was_idle_longest_goes(serve: Serve) -> None:
    server = serve([service("web")])
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(server.tcp_socket()) for _ in range(tcp_side.CONNECTIONS)]
        procs.wait_until(
            lambda: server.metrics().value("kdns_tcp_connections") == tcp_side.CONNECTIONS, 5, "all connections"
        )
        first[0].sendall(framed(plain()))
        assert rcode(read_message(first[0]) or b"") == "NOERROR"
        more = [stack.enter_context(server.tcp_socket()) for _ in range(3)]
        for sock in more:
            sock.sendall(framed(plain()))
            assert rcode(read_message(sock) or b"") == "NOERROR"
        assert [sock.recv(1) for sock in first[1:4]] == [b""] * 3
        poll = select.poll()  # select() takes no descriptors over 1023
        for sock in (first[0], *first[4:]):
            poll.register(sock, select.POLLIN)
        assert not poll.poll(200)
        for sock in (first[0], first[4], first[-1]):
            sock.sendall(framed(plain()))
            assert rcode(read_message(sock) or b"") == "NOERROR"
        assert server.metrics().value("kdns_tcp_connections_closed_total", reason="crowded") == 3


@pytest.mark.usefixtures("many_files")
def test_a_burst_of_too_many_connections_is_answered_all_the_same(serve: Serve) -> None:
    server = serve([service("web")])
    more = 150
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(tcp_side.CONNECTIONS + more):
            sockets.append(stack.enter_context(server.tcp_socket()))
            sockets[-1].sendall(framed(plain()))
        for sock in sockets:
            assert rcode(read_message(sock) or b"") == "NOERROR"
        assert [sock.recv(1) for sock in sockets[:more]] == [b""] * more
        metrics = server.metrics()
        assert metrics.value("kdns_tcp_connections") == tcp_side.CONNECTIONS
        assert metrics.value("kdns_tcp_connections_closed_total", reason="crowded") == more


# Wildcard bind

WILDCARD = """\
.:53 {
    errors
    kubernetes cluster.local {
        manifests $manifests
    }
}
"""
V4 = ("10.9.0.1", "10.9.0.2", "10.9.0.3", "10.99.0.1")
V6 = ("fd09::1", "fd09::2", "fd99::1")


def test_on_a_wildcard_bind_the_answer_leaves_from_the_address_that_was_asked(
    make_netns: Callable[..., Netns], tmp_path: Path
) -> None:
    host, client = make_netns("host"), make_netns("client")
    own = [*(f"{address}/24" for address in V4[:3]), *(f"{address}/64" for address in V6[:2])]
    _, end = host.connect(client, own, ["10.9.0.100/24", "fd09::100/64"])
    host_end = next(line.split()[1].split("@")[0] for line in host.ip("-o", "link").splitlines() if "lo:" not in line)
    # Addresses that are on no link to the client, as those of Services are.
    for address in (f"{V4[3]}/32", f"{V6[2]}/128"):
        host.ip("address", "add", address, "dev", "lo")
    client.ip("route", "add", V4[3], "via", V4[0])
    client.ip("route", "add", V6[2], "via", V6[0])
    link_local = next(
        line.split()[3].split("/")[0] for line in host.ip("-o", "-6", "address", "show", host_end).splitlines()
        if " fe80:" in line
    )  # fmt: skip
    scope = int(client.ip("-o", "link", "show", end).split(":")[0])
    server = Server(tmp_path, [service("web")], corefile=WILDCARD, prefix=host.prefix, connect=None)
    places: list[tuple[socket.AddressFamily, Place]] = [(socket.AF_INET, (address, 53)) for address in V4]
    places += [(socket.AF_INET6, (address, 53, 0, 0)) for address in V6]
    places.append((socket.AF_INET6, (link_local, 53, 0, scope)))
    with server:
        wait_for_answers(client)
        settle(host, client)
        for family, place in places:
            for _ in range(3):
                # A connected socket takes answers from that address only.
                assert rcode(asked(client, family, place, socket.SOCK_DGRAM)) == "NOERROR"
            assert rcode(asked(client, family, place, socket.SOCK_STREAM)) == "NOERROR"


def test_the_answer_takes_the_route_to_the_client_not_the_link_that_the_query_came_by(
    make_netns: Callable[..., Netns], tmp_path: Path
) -> None:
    host, client = make_netns("host"), make_netns("client")
    host.connect(client, [f"{V4[0]}/24", f"{V6[0]}/64"], ["10.9.0.100/24", "fd09::100/64"])
    host.connect(client, ["10.10.0.1/24", "fd10::1/64"], ["10.10.0.100/24", "fd10::100/64"])
    for side in (host, client):
        side.run("sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done")
    client.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore")  # no answers for addresses on lo
    client.ip("address", "add", "10.50.0.1/32", "dev", "lo")
    client.ip("address", "add", "fd50::1/128", "dev", "lo")
    host.ip("route", "add", "10.50.0.1", "via", "10.10.0.100")
    host.ip("route", "add", "fd50::1", "via", "fd10::100")
    with Server(tmp_path, [service("web")], corefile=WILDCARD, prefix=host.prefix, connect=None):
        wait_for_answers(client)
        settle(host, client)
        for family, own, address in ((socket.AF_INET, "10.50.0.1", V4[0]), (socket.AF_INET6, "fd50::1", V6[0])):
            with client.socket(family, socket.SOCK_DGRAM) as sock:
                sock.settimeout(2)
                sock.bind((own, 0))
                sock.connect((address, 53))
                sock.send(plain())
                assert rcode(sock.recv(65535)) == "NOERROR"


Place = tuple[str, int] | tuple[str, int, int, int]


def asked(client: Netns, family: socket.AddressFamily, place: Place, kind: socket.SocketKind) -> bytes:
    with client.socket(family, kind) as sock:
        sock.settimeout(2)
        sock.connect(place)
        if kind is socket.SOCK_STREAM:
            sock.sendall(framed(plain()))
            return read_message(sock) or b""
        sock.send(plain())
        try:
            return sock.recv(65535)
        except TimeoutError:
            raise AssertionError(f"no answer from {place}") from None


def settle(*namespaces: Netns) -> None:
    """Wait until the kernel knows that nobody else has the links' addresses (RFC 4862 5.4)."""
    for each in namespaces:
        procs.wait_until(lambda: not each.ip("-6", "address", "show", "tentative"), 5, "addresses")  # noqa: B023


def wait_for_answers(client: Netns) -> None:
    def answers() -> bool:
        with client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.2)
            sock.connect((V4[0], 53))
            try:
                sock.send(plain())
                return rcode(sock.recv(65535)) == "NOERROR"
            except OSError:
                return False

    procs.wait_until(answers, 20, "an answer through the link", 0.02)
