"""transfer: who gets a zone, all of it of one commit; what has changed since; and who is told of changes."""

from __future__ import annotations

import itertools
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.tsig
import dns.xfr
import dns.zone
import pytest

from kdns.plugins import outgoing, transfer
from tests.conftest import Serve
from tests.support import objects, ports, procs
from tests.support.configs import options, refused
from tests.support.others import ADDRESS, KEY, SECONDARIES, SECRET, Other
from tests.support.server import Server, read_message
from tests.support.tls import Issued, connect, framed

pytestmark = pytest.mark.one_speed

COREFILE = f"""
cluster.local:$dns in-addr.arpa:$dns ext.test:$dns {{
    bind 127.0.0.1
    errors
    ready $host:$ready
    prometheus $host:$metrics
    tsig {{
        secret {KEY} {SECRET}
    }}
    cache
    rewrite stop name old.cluster.local cluster.local
    kubernetes cluster.local in-addr.arpa {{
        manifests $manifests
    }}
    k8s_external ext.test
    transfer cluster.local in-addr.arpa {{
        to *
    }}
    transfer ext.test {{
        to 127.0.0.2 127.0.0.3:5353
        to [::1]:53
    }}
}}
file.test:$dns keyed.test:$dns other.test:$dns {{
    bind 127.0.0.1
    tsig keyed.test {{
        require AXFR IXFR
    }}
    acl {{
        block type AXFR net 127.0.0.9
    }}
    file $folder/db file.test keyed.test other.test
    transfer file.test keyed.test {{
        to *
    }}
}}
.:$dns {{
    bind 127.0.0.1
    whoami
}}
tls://file.test:$tls {{
    bind 127.0.0.1
    tls $folder/server.crt $folder/server.key
    file $folder/db
    transfer {{
        to *
    }}
}}
https://file.test:$https {{
    bind 127.0.0.1
    tls $folder/server.crt $folder/server.key
    file $folder/db
    transfer {{
        to *
    }}
}}
"""
FOR_ALL = """
cluster.local:$dns {
    bind 127.0.0.1
    ready $host:$ready
    kubernetes cluster.local {
        manifests $manifests
    }
    transfer {
        to *
    }
}
"""
MASTER = """$TTL 300
@ SOA ns host 7 60 60 600 60
@ NS ns
ns A 192.0.2.1
*.wild TXT "x" "y"
sub NS ns.sub
ns.sub A 192.0.2.2
"""
COUNT = 400
SECURE = {"tls": 0, "https": 0}
"""Ports of the encrypted servers."""


def cluster(round: int, count: int = COUNT) -> list[objects.Object]:
    """Services, each with the number of the round in its address."""
    return [
        objects.service(f"s{number:04}", ips=[f"10.{round % 200}.{number // 250}.{number % 250 + 1}"])
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("transfer")
    (folder / "db").write_text(MASTER)
    Issued(folder)
    text = COREFILE.replace("$folder", str(folder))
    for scheme in SECURE:
        SECURE[scheme] = ports.free_port([ADDRESS])
        text = text.replace(f"${scheme}", str(SECURE[scheme]))
    with Server(folder / "kdns", cluster(1), corefile=text) as running:
        yield running


def key() -> dns.tsig.Key:
    return dns.tsig.Key(KEY, SECRET, "hmac-sha256")


def axfr(server: Server, zone: str, *, signed: bool = False) -> dns.zone.Zone:
    """The zone, as dnspython takes it: it checks each message, and the signature of each."""
    found = dns.zone.Zone(zone)
    query = dns.message.make_query(zone, "AXFR")
    if signed:
        query.use_tsig(key())
    dns.query.inbound_xfr(ADDRESS, found, query, port=server.port, timeout=10, lifetime=30)
    return found


def ask(
    server: Server,
    zone: str,
    rdtype: str = "AXFR",
    *,
    tcp: bool = True,
    serial: int | None = None,
    source: str | None = None,
    edns: int = -1,
) -> dns.message.Message:
    """The first message of the answer."""
    query = dns.message.make_query(zone, rdtype, use_edns=edns, payload=1232)
    if serial is not None:
        query.authority.append(dns.rrset.from_text(zone + ".", 0, "IN", "SOA", f". . {serial} 0 0 0 0"))
    send = dns.query.tcp if tcp else dns.query.udp
    return send(query, ADDRESS, timeout=10, port=server.port, source=source, one_rr_per_rrset=True)


def code(*arguments: object, **options: object) -> str:
    return dns.rcode.to_text(ask(*arguments, **options).rcode())  # type: ignore[arg-type]


def serial(server: Server, zone: str = "cluster.local") -> int:
    return int(server.query(zone, "SOA").answer[0][0].serial)


def shape(found: dns.message.Message) -> list[str]:
    """Owners of the answer; of an SOA record its serial."""
    return [
        str(one[0].serial) if one.rdtype == dns.rdatatype.SOA else str(one.name).partition(".")[0]
        for one in found.answer
    ]


def change(server: Server, wanted: Iterable[objects.Object]) -> int:
    """Write another cluster, and wait until it is served; its serial."""
    before = serial(server)
    server.write_objects(wanted)
    procs.wait_until(lambda: serial(server) != before, 10, "another serial")
    return serial(server)


# All of a zone


@pytest.mark.parametrize("signed", [False, True], ids=["plain", "signed"])
def test_all_of_a_zone_is_there(server: Server, signed: bool) -> None:
    server.write_objects(cluster(1))
    procs.wait_until(lambda: server.texts("s0399.default.svc.cluster.local") == ["10.1.1.150"], 10, "the cluster")
    found = axfr(server, "cluster.local", signed=signed)
    for number in (0, 250, 399):
        name = f"s{number:04}.default.svc"
        assert server.texts(f"{name}.cluster.local") == [str(one) for one in found.find_rdataset(name, "A")]
        for rdtype in ("SRV", "A"):
            assert found.find_rdataset(name, rdtype).ttl == 5
    assert found.find_rdataset("@", "SOA")[0].serial == serial(server)
    assert len(list(found.iterate_rdatasets("A"))) == COUNT + 1
    reverse = axfr(server, "in-addr.arpa", signed=signed)
    assert len(list(reverse.iterate_rdatasets("PTR"))) == COUNT


@pytest.mark.parametrize("tool", ["dig", "kdig"])
def test_other_clients_take_it_too(server: Server, tool: str, needs: Callable[..., None]) -> None:
    needs(tool)
    command = [
        tool,
        f"@{ADDRESS}",
        "-p",
        str(server.port),
        "-y",
        f"hmac-sha256:{KEY}:{SECRET}",
        "cluster.local",
        "AXFR",
    ]
    text = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    lines = [line.split() for line in text.splitlines() if line and not line.startswith(";")]
    records = [line for line in lines if line[3] != "TSIG"]
    assert records[0] == records[-1]
    assert records[0][3] == "SOA"
    assert len(records) == 3 * COUNT + 5
    assert "fail" not in text.lower()


def test_zones_of_files_are_transferred_as_they_are(server: Server) -> None:
    found = axfr(server, "file.test")
    wanted = dns.zone.from_text(MASTER, "file.test.")
    assert sorted(found.to_text().splitlines()) == sorted(wanted.to_text().splitlines())


def test_messages_are_large_and_signed_one_by_one(server: Server) -> None:
    query = dns.message.make_query("CLUSTER.local", "AXFR", use_edns=0)
    query.use_tsig(key())
    with server.tcp_socket() as sock:
        sock.sendall(struct.pack("!H", len(data := query.to_wire())) + data)
        messages = []
        count = 0
        context = None
        while count < 2:
            data = read_message(sock) or b""
            assert data
            read = dns.message.from_wire(
                data,
                keyring={query.keyname: key()},
                request_mac=query.mac,
                tsig_ctx=context,
                multi=True,
                xfr=True,
                one_rr_per_rrset=True,
            )
            context = read.tsig_ctx
            assert read.had_tsig
            assert read.edns == 0
            assert read.question[0].name.to_text() == "CLUSTER.local."
            messages.append(len(data))
            count += sum(one.rdtype == dns.rdatatype.SOA for one in read.answer)
    assert len(messages) > 2
    assert all(12_000 < size < 17_000 for size in messages[:-1])


def test_who_may_have_what(server: Server) -> None:
    assert code(server, "cluster.local", tcp=False) == "REFUSED"
    assert code(server, "svc.cluster.local") == "NOTAUTH"
    assert code(server, "other.test") == "REFUSED"  # no `transfer` has it
    assert code(server, "example.com") == "REFUSED"
    assert code(server, "ext.test") == "REFUSED"
    assert code(server, "ext.test", source="127.0.0.2") == "NOERROR"
    assert code(server, "ext.test", source="127.0.0.3") == "NOERROR"
    assert code(server, "ext.test", "IXFR", tcp=False, serial=1, source="127.0.0.4") == "REFUSED"
    assert code(server, "old.cluster.local") == "REFUSED"  # which is another name for a zone
    assert code(server, "file.test", source="127.0.0.9") == "REFUSED"  # as `acl` says
    assert code(server, "file.test", "IXFR", serial=7, source="127.0.0.9") == "NOERROR"
    assert code(server, "keyed.test") == "REFUSED"
    assert "ns" in axfr_keyed(server)
    assert code(server, "cluster.local", "IXFR") == "FORMERR"
    assert code(server, "cluster.local", "IXFR", tcp=False) == "FORMERR"


def axfr_keyed(server: Server) -> set[str]:
    query = dns.message.make_query("keyed.test", "AXFR")
    query.use_tsig(key())
    answer = dns.query.tcp(query, ADDRESS, timeout=5, port=server.port)
    assert answer.had_tsig
    return {str(rrset.name).partition(".")[0] for rrset in answer.answer}


def test_it_goes_over_tls_and_not_over_https(server: Server) -> None:
    context = ssl.create_default_context(cafile=str(server.folder.parent / "ca.pem"))
    query = dns.message.make_query("file.test", "AXFR")
    with connect(SECURE["tls"], context) as sock:
        sock.sendall(framed(query.to_wire()))
        found = dns.message.from_wire(read_message(sock) or b"", xfr=True, one_rr_per_rrset=True)
    assert len(found.answer) == 7
    context.set_alpn_protocols(["http/1.1"])
    with connect(SECURE["https"], context) as sock:
        data = query.to_wire()
        head = "POST /dns-query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/dns-message\r\n"
        sock.sendall(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
        body = b""
        while part := sock.recv(65536):
            body += part
    assert dns.message.from_wire(body.partition(b"\r\n\r\n")[2]).rcode() == dns.rcode.REFUSED


def test_several_take_it_at_a_time(server: Server) -> None:
    data = b"".join(
        struct.pack("!H", len(query)) + query
        for query in (dns.message.make_query("cluster.local", "AXFR", id=number).to_wire() for number in range(5))
    )
    before = server.metrics().value("coredns_cache_requests_total")
    with server.tcp_socket() as one, server.tcp_socket() as two:
        counts = {}
        for sock in (one, two):
            sock.sendall(data)
        for sock in (one, two):
            ends = dict.fromkeys(range(5), 0)
            records = dict.fromkeys(range(5), 0)
            while min(ends.values()) < 2:
                read = dns.message.from_wire(read_message(sock) or b"", xfr=True, one_rr_per_rrset=True)
                records[read.id] += len(read.answer)
                ends[read.id] += sum(rrset.rdtype == dns.rdatatype.SOA for rrset in read.answer)
            counts[sock] = records
    assert counts[one] == counts[two] == dict.fromkeys(range(5), 3 * COUNT + 5)
    assert server.metrics().value("coredns_cache_requests_total") == before  # nothing of it is kept


# What has changed


def test_a_difference_is_all_that_is_sent(server: Server) -> None:
    first = change(server, cluster(2))
    second = change(server, [*cluster(2), objects.service("web", ips=["10.99.0.1"])])
    found = ask(server, "cluster.local", "IXFR", serial=first)
    new = ["web", "web", "_http"]
    assert shape(found) == [str(second), str(first), str(second), *new, str(second)]
    third = change(server, [*cluster(2), objects.service("web", ips=["10.99.0.2"])])
    assert shape(ask(server, "cluster.local", "IXFR", serial=second)) == [
        *[str(third), str(second), "web"],
        *[str(third), "web", str(third)],
    ]
    both = ask(server, "cluster.local", "IXFR", serial=first)
    assert shape(both) == [str(third), str(first), str(third), "web", "_http", "web", str(third)]
    udp = ask(server, "cluster.local", "IXFR", serial=first, tcp=False, edns=0)
    assert sorted(shape(udp)) == sorted(shape(both))


def test_who_is_up_to_date_gets_the_soa_alone(server: Server) -> None:
    now = serial(server)
    for known in (now, now + 1, now + 1000):
        for tcp in (True, False):
            assert shape(ask(server, "cluster.local", "IXFR", serial=known, tcp=tcp)) == [str(now)]


def test_who_is_too_far_behind_gets_all(server: Server) -> None:
    now = serial(server)
    known = (now - 3_000_000) & 0xFFFFFFFF
    found = ask(server, "cluster.local", "IXFR", serial=known)
    assert shape(found)[:1] == [str(now)]
    assert len(found.answer) > 100
    assert found.answer[1].rdtype != dns.rdatatype.SOA
    assert shape(ask(server, "cluster.local", "IXFR", serial=known, tcp=False, edns=0)) == [str(now)]


def test_answers_over_udp_are_no_transfers_that_are_under_way(server: Server) -> None:
    now = serial(server)
    for _ in range(outgoing.MOST + 10):
        assert shape(ask(server, "cluster.local", "IXFR", serial=now, tcp=False)) == [str(now)]
    assert shape(ask(server, "cluster.local", "IXFR", serial=now)) == [str(now)]


def test_a_difference_that_is_too_large_for_udp_is_not_sent(server: Server) -> None:
    before = serial(server)
    now = change(server, cluster(3))
    assert shape(ask(server, "cluster.local", "IXFR", serial=before, tcp=False, edns=0)) == [str(now)]
    assert len(ask(server, "cluster.local", "IXFR", serial=before).answer) > 100


def test_transfers_are_counted(server: Server) -> None:
    before = server.metrics()
    ask(server, "file.test", "AXFR")
    ask(server, "file.test", "IXFR", serial=7)
    ask(server, "nowhere.file.test", "AXFR")
    after = server.metrics()
    for result in ("axfr", "current", "refused"):
        name = "kdns_transfers_total"
        assert after.value(name, result=result) == before.value(name, result=result) + 1, result
    assert "transfer of 7 records of zone file.test. to 127.0.0.1, serial 7" in server.log


# While it changes


def round_of(found: dns.zone.Zone) -> set[str]:
    """The second number of the addresses of a cluster; more than one if it is of several commits."""
    return {
        str(rdataset[0]).split(".")[1]
        for name, rdataset in found.iterate_rdatasets("A")
        if name.labels[0].startswith(b"s0")
    }


def test_a_zone_is_of_one_commit_while_it_changes_and_the_reader_is_slow(server: Server) -> None:
    stop = threading.Event()

    def write() -> None:
        round = 10
        while not stop.is_set():
            server.write_objects(cluster(round))
            round += 1
            stop.wait(0.05)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        rounds = set()
        copy = axfr(server, "cluster.local")
        for _ in range(6):
            found = axfr(server, "cluster.local")
            assert len(round_of(found)) == 1
            rounds |= round_of(found)
            query, _ = dns.xfr.make_query(copy)
            dns.query.inbound_xfr(ADDRESS, copy, query, port=server.port, timeout=10)
            assert len(round_of(copy)) == 1
            assert len(copy.nodes) == len(found.nodes)
        assert len(rounds) > 2
        assert len(round_of(slowly(server))) == 1
    finally:
        stop.set()
        writer.join()


def slowly(server: Server) -> dns.zone.Zone:
    """Take a zone so that the server has to wait, while it changes."""
    query = dns.message.make_query("cluster.local", "AXFR")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(5)
    sock.connect((ADDRESS, server.port))
    found = dns.zone.Zone("cluster.local")
    with sock, dns.xfr.Inbound(found, dns.rdatatype.AXFR) as inbound:
        sock.sendall(struct.pack("!H", len(data := query.to_wire())) + data)
        while True:
            time.sleep(0.02)
            data = read_message(sock) or b""
            if inbound.process_message(
                dns.message.from_wire(data, xfr=True, one_rr_per_rrset=True, origin=found.origin)
            ):
                return found


def test_others_are_answered_while_somebody_takes_nothing(tmp_path: Path) -> None:
    corefile = """
cluster.local:$dns {
    bind 127.0.0.1
    ready $host:$ready
    prometheus $host:$metrics
    timeouts {
        write 1s
    }
    kubernetes cluster.local {
        manifests $manifests
    }
    transfer {
        to *
    }
}
"""
    with Server(tmp_path, cluster(1, 3000), corefile=corefile) as server:
        server._wait(lambda: server.texts("s2999.default.svc.cluster.local"), 20, "the cluster")
        data = dns.message.make_query("cluster.local", "AXFR").to_wire()
        lazy = []
        for _ in range(2):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect((ADDRESS, server.port))
            sock.sendall((struct.pack("!H", len(data)) + data) * 24)  # more than the kernel has room for
            lazy.append(sock)
        started = time.monotonic()
        for _ in range(50):
            assert server.query("s0001.default.svc.cluster.local", tcp=True).answer
        assert time.monotonic() - started < 3
        assert len(axfr(server, "cluster.local").nodes) > 6000
        closed = "kdns_tcp_connections_closed_total"
        procs.wait_until(lambda: server.metrics().value(closed, reason="slow") == 2, 10, "their end")
        for sock in lazy:
            sock.close()


# NOTIFY


class Listener:
    """Takes NOTIFYs, and answers them if it is told to."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((ADDRESS, 0))
        self.sock.settimeout(5)
        self.port = self.sock.getsockname()[1]

    def next(self, *, answer: bool = True, rcode: int = 0) -> dns.message.Message:
        data, address = self.sock.recvfrom(4096)
        found = dns.message.from_wire(data)
        if answer:
            reply = dns.message.make_response(found)
            reply.set_rcode(dns.rcode.Rcode(rcode))
            self.sock.sendto(reply.to_wire(), address)
        return found

    def silent_for(self, seconds: float) -> bool:
        self.sock.settimeout(seconds)
        try:
            self.sock.recv(4096)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(5)
        return False


def notified(found: dns.message.Message) -> tuple[str, str, str]:
    (question,) = found.question
    return dns.opcode.to_text(found.opcode()), str(question.name), dns.rdatatype.to_text(question.rdtype)


def test_an_address_is_told_of_changes_until_it_answers(serve: Callable[..., Server]) -> None:
    listener = Listener()
    corefile = """
cluster.local:$dns {
    bind 127.0.0.1
    ready $host:$ready
    prometheus $host:$metrics
    kubernetes cluster.local {
        manifests $manifests
    }
    transfer {
        to 127.0.0.1:$listener
    }
}
""".replace("$listener", str(listener.port))
    server = serve(cluster(1, 5), corefile=corefile)
    wanted = ("NOTIFY", "cluster.local.", "SOA")
    assert notified(listener.next(rcode=dns.rcode.REFUSED)) == wanted  # when it starts
    assert listener.silent_for(1.2)  # whatever is answered
    change(server, cluster(2, 5))
    assert notified(listener.next(answer=False)) == wanted
    started = time.monotonic()
    assert notified(listener.next()) == wanted
    assert 0.8 < time.monotonic() - started < 3
    stop = time.monotonic() + 0.9
    round, told = 3, 0
    while time.monotonic() < stop:
        server.write_objects(cluster(round, 5))
        round += 1
        listener.sock.settimeout(0.02)
        try:
            listener.next()
            told += 1
        except TimeoutError:
            continue
    assert 2 <= told <= 5
    while not listener.silent_for(0.5):
        pass
    server.terminate()


# Restarts


def test_a_serial_does_not_go_back(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(cluster(1, 5), corefile=FOR_ALL)
    seen = [serial(server), *(change(server, cluster(round, 5)) for round in range(2, 6))]
    server.kill()
    server.start()
    assert serial(server) >= seen[-1]  # the zone of the snapshot, or that and what changed meanwhile
    found = ask(server, "cluster.local", "IXFR", serial=seen[0])
    assert shape(found)[1] == str(seen[0])  # the journal was there before
    seen += [serial(server), change(server, cluster(6, 5))]
    server.kill()
    for file in server.state_dir.iterdir():
        file.unlink()
    server.start()
    seen.append(serial(server))
    assert all((after - before) & 0xFFFFFFFF < 1 << 31 for before, after in itertools.pairwise(seen))
    assert seen[-1] != seen[-2]


def test_after_a_kill_copies_can_go_on_with_what_they_have(serve: Callable[..., Server]) -> None:
    server = serve(cluster(1, 50), corefile=FOR_ALL)
    copy = axfr(server, "cluster.local")
    round = 1
    for _ in range(3):
        stop = time.monotonic() + 0.3
        while time.monotonic() < stop:
            round += 1
            server.write_objects(cluster(round, 50))
            time.sleep(0.01)
        query, known = dns.xfr.make_query(copy)
        dns.query.inbound_xfr(ADDRESS, copy, query, port=server.port, timeout=5)
        server.kill()  # while it writes
        server.start()
        wanted = [f"10.{round % 200}.0.50"]
        server._wait(
            lambda wanted=wanted: server.texts("s0049.default.svc.cluster.local") == wanted, 10, "the last round"
        )
        query, known = dns.xfr.make_query(copy)
        dns.query.inbound_xfr(ADDRESS, copy, query, port=server.port, timeout=5)
        assert known is not None
        found = ask(server, "cluster.local", "IXFR", serial=known)
        assert shape(found)[1:2] in ([], [str(known)])  # it is a difference, if there is one
        assert sorted(copy.to_text().splitlines()) == sorted(axfr(server, "cluster.local").to_text().splitlines())


# Others that follow


FOLLOWED = f"""
cluster.local:$dns {{
    bind 127.0.0.1
    ready $host:$ready
    prometheus $host:$metrics
    tsig {{
        secret {KEY} {SECRET}
        require AXFR IXFR
    }}
    kubernetes cluster.local {{
        manifests $manifests
    }}
    transfer {{
        to $followers
    }}
}}
"""


def test_other_servers_follow_a_cluster(
    serve: Callable[..., Server], tmp_path: Path, needs: Callable[..., None]
) -> None:
    needs(*SECONDARIES)
    places = {name: ports.free_port([ADDRESS]) for name in SECONDARIES}
    followers = " ".join(f"{ADDRESS}:{port}" for port in places.values())
    server = serve(cluster(1), corefile=FOLLOWED.replace("$followers", followers))
    others = [Other(name, tmp_path / name, "cluster.local", server.port, port) for name, port in places.items()]

    def has(other: Other, address: str) -> bool:  # of NSD's processes one may be behind for a moment
        return other.addresses("web.default.svc.cluster.local") == [address]

    def follow(what: str) -> None:
        wanted = serial(server)
        for other in others:
            server._wait(lambda other=other: other.serial() == wanted, 15, f"{other.name}: {what}")

    try:
        for other in others:
            other.start()
        follow("the first copy")
        before = server.metrics()
        last = change(server, [*cluster(1), objects.service("web", ips=["10.99.0.1"])])
        follow("a change")
        change(server, [*cluster(1), objects.service("web", ips=["10.99.0.2"])])
        follow("another one")
        assert last != serial(server)
        for other in others:
            server._wait(lambda other=other: has(other, "10.99.0.2"), 5, other.name)
        name = "kdns_transfers_total"
        after = server.metrics()
        assert after.value(name, result="axfr") == before.value(name, result="axfr")
        assert after.value(name, result="ixfr") >= before.value(name, result="ixfr") + len(others)
        server.kill()  # and the copies stay
        for other in others:
            assert other.addresses("web.default.svc.cluster.local") == ["10.99.0.2"], other.name
        server.write_objects([*cluster(1), objects.service("web", ips=["10.99.0.3"])])
        server.start()
        server._wait(lambda: server.texts("web.default.svc.cluster.local") == ["10.99.0.3"], 10, "the change")
        follow("a restart")
        for other in others:
            server._wait(lambda other=other: has(other, "10.99.0.3"), 5, other.name)
    finally:
        for other in others:
            other.kill()


# The directive


def test_options() -> None:
    found = options(
        "transfer a.test {\nto 192.0.2.1 192.0.2.2:5300\nto 2001:DB8:0::1 [2001:db8::2] [2001:db8::3]:54 *\n}"
    )
    (rule,) = found.rules
    assert rule.zones == ("a.test.",)
    assert rule.anyone
    assert rule.to == (
        ("192.0.2.1", 53),
        ("192.0.2.2", 5300),
        ("2001:db8::1", 53),
        ("2001:db8::2", 53),
        ("2001:db8::3", 54),
    )
    several = options("transfer {\nto *\n}\ntransfer sub.example.org {\nto 192.0.2.1\n}").by_zone()
    assert several.find(b"\1a\3sub\7example\3org\0") == transfer.Rule(("sub.example.org.",), (("192.0.2.1", 53),))
    assert several.find(b"\1a\7example\3org\0") == transfer.Rule(("example.org.",), (), True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("transfer", ["1: transfer has no `to`"]),
        ("transfer {\n}", ["1: transfer has no `to`"]),
        ("transfer {\nto\n}", ['2: transfer: "to" has 0 arguments']),
        ("transfer {\nto example.org\n}", ['2: transfer: "example.org" is no address']),
        ("transfer {\nto 192.0.2.1:0\n}", ['2: transfer: "192.0.2.1:0" is no address']),
        ("transfer {\nto 192.0.2.0/24\n}", ['2: transfer: "192.0.2.0/24" is no address']),
        ("transfer {\nto *\nsource 192.0.2.1\n}", ['2: transfer: "source" is not supported by this version of kdns']),
    ],
)
def test_mistakes_are_refused(text: str, expected: list[str]) -> None:
    found = refused(text)
    assert [one.partition(": ")[2] for one in found] == [one.partition(": ")[2] for one in expected]


def test_what_zonal_looks_up_is_in_no_transfer(serve: Serve) -> None:
    def cluster(address: str) -> list[objects.Object]:
        return [
            objects.service("db", ips=()),
            objects.endpoint_slice("db", [objects.endpoint(address, hostname="db-0", zone="a")]),
        ]

    server = serve(cluster("10.1.0.1"), kubernetes="zonal", plugins="transfer {\n to *\n }", workers=1)
    copy = axfr(server, "cluster.local")
    endpoint = dns.name.from_text("db-0.db.default.svc", None)
    assert endpoint in copy.nodes
    server.write_objects(cluster("10.1.0.2"))
    pinned = "a.pin._zone.db.default.svc.cluster.local"
    procs.wait_until(lambda: server.texts(pinned) == ["10.1.0.2"], 3, "the new address")
    query, _ = dns.xfr.make_query(copy)
    dns.query.inbound_xfr(ADDRESS, copy, query, port=server.port, timeout=5)
    assert copy == axfr(server, "cluster.local")
    assert [rdata.to_text() for rdata in copy.get_rdataset(endpoint, "A") or ()] == ["10.1.0.2"]
    assert not [name for name in copy.nodes if b"_zone" in name.labels]
