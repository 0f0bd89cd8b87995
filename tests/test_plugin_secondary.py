"""secondary: copies of zones that follow their primaries, outlive them for a while, and are whole at any time."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.tsig
import dns.zone
import pytest

from kdns.errors import ConfigError
from kdns.plugins import loads
from kdns.server import primary
from kdns.wire import message, names, rr, tsig
from tests.support import objects, ports
from tests.support.configs import options, refused
from tests.support.others import ADDRESS, KEY, PRIMARIES, SECRET, Other
from tests.support.server import Server, read_message
from tests.support.upstream import Asked, FakeUpstream, usual

pytestmark = pytest.mark.one_speed

SECRET_KEY = dns.tsig.Key(KEY, SECRET, "hmac-sha256")
OURS = tsig.Key(names.from_text(KEY), base64.b64decode(SECRET))
OTHER = base64.b64encode(b"another").decode()
SECONDARY = f"""
    tsig {{
        secret {KEY} {SECRET}
    }}
    secondary {{
        transfer from $primary
        key {KEY}
    }}
"""

HASTY = """
from kdns.cli import app
from kdns.server import secondary_feed
secondary_feed.FIRST_RETRIES = 0.1, 0.1
secondary_feed.SPREAD = 0.05
secondary_feed._LEAST = 0.2
secondary_feed.LEAST_EXPIRE = 1
app(prog_name="kdns")
"""
"""`kdns` that asks again after 0.1 s (for users up to 10 s), or 0.2 s (1 s) where the SOA record says so, and comes
back within 0.05 s (1 s); a copy lasts 1 s at least (2 s)."""


def master(serial: int, more: str = "", *, expire: int = 600) -> str:
    hosts = "".join(f"h{number} A 192.0.2.{number % 200 + 1}\n" for number in range(300))
    text = f"$TTL 300\n@ SOA ns host {serial} 60 0 {expire} 60\n@ NS ns\nns A 192.0.2.1\n"
    return f'{text}*.wild TXT "x" "y"\nsub NS ns.sub\nns.sub A 192.0.2.2\n{hosts}{more}'


def serial(server: Server, zone: str) -> int | None:
    answer = server.query(zone, "SOA")
    return int(answer.answer[0][0].serial) if answer.answer else None


def code(server: Server, name: str) -> str:
    return dns.rcode.to_text(server.query(name).rcode())


# Other servers as primaries


@pytest.fixture(scope="module")
def primaries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, Other]]]:
    folder = tmp_path_factory.mktemp("primaries")
    places = {name: ports.free_port([ADDRESS]) for name in PRIMARIES}
    port = ports.free_port([ADDRESS])
    corefile = "cluster.local:$dns {\n    bind 127.0.0.1\n    prometheus $host:$metrics\n    whoami\n}\n"
    with contextlib.ExitStack() as stack:
        others = {}
        for name, at in places.items():
            other = others[name] = Other(name, folder / name, f"{name}.test", port, at, PRIMARIES)
            (other.folder / "zone").write_text(master(1))
            stack.enter_context(other)
            body = SECONDARY.replace("$primary", f"127.0.0.1:{at}") + "    transfer {\n        to *\n    }\n"
            corefile += f"{name}.test:$dns {{\n    bind 127.0.0.1\n{body}}}\n"
        yield stack.enter_context(Server(folder / "kdns", corefile=corefile, dns_port=port)), others


@pytest.mark.parametrize("name", PRIMARIES)
def test_a_copy_follows_other_servers(primaries: tuple[Server, dict[str, Other]], name: str) -> None:
    server, others = primaries
    other, zone = others[name], f"{name}.test"
    server._wait(lambda: serial(server, zone) == 1, 10, f"a copy of {name}'s zone")
    assert server.texts(f"h299.{zone}") == ["192.0.2.100"]
    assert server.texts(f"a.wild.{zone}", "TXT") == ['"x" "y"']
    assert [str(rrset.name) for rrset in server.query(f"x.sub.{zone}").authority] == [f"sub.{zone}."]
    assert server.query(f"nothing.{zone}").rcode() == dns.rcode.NXDOMAIN
    (other.folder / "zone").write_text(master(2, "new A 192.0.2.99\n").replace("h7 A", "changed A"))
    assert other.process is not None
    other.process.send_signal(signal.SIGHUP)
    server._wait(lambda: serial(server, zone) == 2, 10, f"{name}'s change")  # it is told of it by NOTIFY
    assert server.texts(f"new.{zone}") == ["192.0.2.99"]
    assert (server.texts(f"h7.{zone}"), server.texts(f"changed.{zone}")) == ([], ["192.0.2.8"])
    counted = {result: transfers(server, zone, result) for result in ("axfr", "ixfr")}
    assert counted == {"axfr": 1, "ixfr": 1}
    mine, theirs = (copy_of(at, zone) for at in (server.port, other.port))
    assert mine == theirs
    sent = difference(server, zone, 1)
    assert (sent[:4], sorted(sent[4:6]), sent[6:]) == (["2", "1", "h7", "2"], ["changed", "new"], ["2"])


def transfers(server: Server, zone: str, result: str) -> float:
    return server.metrics().value("kdns_secondary_transfers_total", zone=f"{zone}.", result=result)


def copy_of(port: int, zone: str) -> list[str]:
    found = dns.zone.Zone(zone)
    query = dns.message.make_query(zone, "AXFR")
    query.use_tsig(SECRET_KEY)
    dns.query.inbound_xfr(ADDRESS, found, query, port=port, timeout=5)
    return sorted(found.to_text().splitlines())


def difference(server: Server, zone: str, before: int) -> list[str]:
    """What a copy of the copy gets."""
    query = dns.message.make_query(zone, "IXFR")
    query.authority.append(dns.rrset.from_text(zone + ".", 0, "IN", "SOA", f". . {before} 0 0 0 0"))
    found = dns.query.tcp(query, ADDRESS, timeout=5, port=server.port, one_rr_per_rrset=True)
    return [
        str(one[0].serial) if one.rdtype == dns.rdatatype.SOA else str(one.name).partition(".")[0]
        for one in found.answer
    ]


def test_a_notify_of_a_stranger_does_nothing(primaries: tuple[Server, dict[str, Other]]) -> None:
    server, _ = primaries

    def notify(zone: str, source: str = "127.0.0.1", rdtype: str = "SOA", key: str = "") -> str:
        query = dns.message.make_query(zone, rdtype)
        query.set_opcode(dns.opcode.NOTIFY)
        query.flags |= dns.flags.AA
        if key:
            query.use_tsig(dns.tsig.Key(KEY, key, "hmac-sha256"))
        answer = dns.query.udp(query, ADDRESS, timeout=3, port=server.port, source=source)
        assert answer.opcode() == dns.opcode.NOTIFY
        return dns.rcode.to_text(answer.rcode())

    assert notify("knotd.test") == "NOERROR"
    assert notify("knotd.test", key=SECRET) == "NOERROR"
    assert notify("knotd.test", source="127.0.0.2") == "REFUSED"
    assert notify("sub.knotd.test") == "NOTAUTH"
    assert notify("cluster.local") == "NOTAUTH"
    assert notify("knotd.test", rdtype="A") == "NOTAUTH"
    with pytest.raises(dns.tsig.PeerBadSignature):
        notify("knotd.test", key=OTHER)


# A primary that does what a test wants


@dataclass
class Primary:
    """Gives a zone away, as a test wants it.

    text: the zone. how: "whole", "silent", "closed", "refused", "old", which knows no EDNS, "slow", which sends half of
    it and waits, "signed", or "half", which signs the first half only; the others sign nothing.
    """

    text: str
    how: str = "whole"
    host: str = ADDRESS
    port: int = field(default_factory=lambda: ports.free_port([ADDRESS]))
    asked: list[str] = field(default_factory=list)
    connections: list[socket.socket] = field(default_factory=list)
    half: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Primary:
        self.sock = socket.create_server((self.host, self.port))
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.go_on.set()
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.sock.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while self.how != "closed" and (data := read_message(connection)):
                query = dns.message.from_wire(data, keyring={dns.name.from_text(KEY): SECRET_KEY})
                kind = dns.rdatatype.to_text(query.question[0].rdtype)
                self.asked.append(kind)
                if self.how == "silent":
                    self.go_on.wait(20)
                    return
                record = tsig.find(data, message.question_end(data))
                signer = tsig.Signer(tsig.Signed(record, OURS)) if record is not None else None
                for number, answer in enumerate(self._answers(query, kind)):
                    wire = answer.to_wire(max_size=65535)
                    if signer is not None and (self.how == "signed" or (self.how == "half" and not number)):
                        wire = signer.sign(wire, time.time())
                    connection.sendall(struct.pack("!H", len(wire)) + wire)

    def _answers(self, query: dns.message.Message, kind: str) -> Iterator[dns.message.Message]:
        zone = dns.zone.from_text(self.text, query.question[0].name, relativize=False)
        soa = dns.rrset.from_rdata_list(query.question[0].name, 300, list(zone.find_rdataset("@", "SOA")))
        rrsets = [dns.rrset.from_rdata_list(name, 300, list(found)) for name, found in zone.iterate_rdatasets()]
        rest = [rrset for rrset in rrsets if rrset.rdtype != dns.rdatatype.SOA]
        parts = [[soa]] if kind == "SOA" else [[soa, *rest[:100]], [*rest[100:], soa]]
        for number, part in enumerate(parts):
            if number and self.how == "slow":
                self.half.set()
                self.go_on.wait(20)
            answer = dns.message.make_response(query)
            answer.tsig = None
            if self.how == "refused" or (self.how == "old" and query.edns >= 0):
                answer.set_rcode(dns.rcode.REFUSED if self.how == "refused" else dns.rcode.FORMERR)
                yield answer
                return
            answer.answer = part
            yield answer


def corefile(*primaries: Primary) -> str:
    where = " ".join(f"{primary.host}:{primary.port}" for primary in primaries)
    return f"""
z.test:$dns {{
    bind 127.0.0.1
    prometheus $host:$metrics
    secondary {{
        transfer from {where}
        fallthrough pass.z.test
    }}
    whoami
}}
"""


def test_a_copy_is_whole_whoever_is_killed_in_the_middle(serve: Callable[..., Server]) -> None:
    with Primary(master(1)) as primary:
        server = serve(corefile=corefile(primary), program=HASTY)
        server._wait(lambda: serial(server, "z.test") == 1, 10, "the first copy")
        primary.text = master(2, "new A 192.0.2.99\n").replace("h7 A", "changed A")
        primary.how = "slow"
        notify(server)
        assert primary.half.wait(10)
        assert (serial(server, "z.test"), server.texts("h7.z.test")) == (1, ["192.0.2.8"])
        server.kill()  # in the middle
    server.start()  # and the primary is gone
    server._wait(lambda: serial(server, "z.test") == 1, 10, "the copy of before")
    assert (server.texts("h7.z.test"), server.texts("changed.z.test")) == (["192.0.2.8"], [])
    with Primary(primary.text, "slow", port=primary.port) as again:
        assert again.half.wait(10)
        assert serial(server, "z.test") == 1
    # now the primary has gone in the middle
    assert (serial(server, "z.test"), server.texts("h7.z.test")) == (1, ["192.0.2.8"])
    with Primary(primary.text, port=primary.port):
        server._wait(lambda: serial(server, "z.test") == 2, 10, "the new copy")
        assert (server.texts("h7.z.test"), server.texts("changed.z.test")) == ([], ["192.0.2.8"])
    assert server.terminate() < 5


def notify(server: Server, source: str = ADDRESS) -> None:
    query = dns.message.make_query("z.test", "SOA")
    query.set_opcode(dns.opcode.NOTIFY)
    answer = dns.query.udp(query, ADDRESS, timeout=3, port=server.port, source=source)
    assert answer.rcode() == dns.rcode.NOERROR


def test_a_copy_expires_and_comes_back(serve: Callable[..., Server]) -> None:
    with Primary(master(1, expire=1)) as primary:
        server = serve(corefile=corefile(primary), program=HASTY)
        server._wait(lambda: serial(server, "z.test") == 1, 10, "the first copy")
        heard = time.monotonic()
        primary.how = "closed"
        assert code(server, "h1.z.test") == "NOERROR"
        server._wait(lambda: code(server, "h1.z.test") == "SERVFAIL", 10, "its end")
        assert 0.5 < time.monotonic() - heard < 6
        assert server.metrics().value("kdns_secondary_expired", zone="z.test.") == 1
        server.kill()
        server.start()  # it stays so
        assert code(server, "h1.z.test") == "SERVFAIL"
        primary.how = "whole"
        server._wait(lambda: code(server, "h1.z.test") == "NOERROR", 10, "its return")
        server._wait(lambda: server.metrics().value("kdns_secondary_expired", zone="z.test.") == 0, 5, "the metric")
        assert "no primary has answered for 1 s" in server.log


def test_another_primary_is_asked_when_one_does_not_answer(serve: Callable[..., Server]) -> None:
    with (
        Primary(master(1), "refused") as first,
        Primary(master(1), "closed") as second,
        Primary(master(1), host="127.0.0.3") as third,
    ):
        server = serve(corefile=corefile(first, second, third), program=HASTY)
        server._wait(lambda: serial(server, "z.test") == 1, 10, "a copy")
        assert first.asked == ["AXFR"]
        assert third.asked[0] == "AXFR"
        third.text = master(2)
        notify(server, third.host)
        server._wait(lambda: serial(server, "z.test") == 2, 10, "a change")
        assert third.asked[1:] == ["SOA", "IXFR"]
        assert first.asked == ["AXFR"]  # it has not said that there is anything new
        third.text = master(1)  # which is older
        notify(server)
        server._wait(lambda: third.asked[3:] == ["SOA"], 10, "another question")
        server._wait(lambda: transfers(server, "z.test", "current") == 1, 10, "the count")
        assert serial(server, "z.test") == 2
        assert code(server, "nothing.z.test") == "NXDOMAIN"
        assert code(server, "nothing.pass.z.test") == "NOERROR"  # of whoami
        third.how = "refused"
        notify(server)
        server._wait(lambda: "127.0.0.1" in server.log and "REFUSED" in server.log, 10, "what is wrong")
        assert serial(server, "z.test") == 2


def test_a_primary_need_not_know_edns(serve: Callable[..., Server]) -> None:
    with Primary(master(1), "old") as old:
        server = serve(corefile=corefile(old), program=HASTY)
        server._wait(lambda: serial(server, "z.test") == 1, 10, "a copy")
        assert old.asked == ["AXFR", "AXFR"]
        old.text = master(2)
        notify(server)
        server._wait(lambda: serial(server, "z.test") == 2, 10, "a change")
        assert old.asked[2:] == ["SOA", "IXFR"]
        assert transfers(server, "z.test", "failed") == 0


def test_a_primary_that_takes_no_answers_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primary, "UNSENT", 1000)
    notify = dns.message.make_query("z.test", "SOA", id=1)
    notify.set_opcode(dns.opcode.NOTIFY)
    data = notify.to_wire()
    ended = asyncio.Event()

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while not ended.is_set():
                writer.write((struct.pack("!H", len(data)) + data) * 100)
                await writer.drain()

    async def listen() -> None:
        sock = socket.create_server((ADDRESS, 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server = await asyncio.start_server(flood, sock=sock, limit=1)
        told: list[bytes] = []

        def take(origin: bytes) -> bool:
            told.append(origin)
            return True

        found = primary.Primary(sock.getsockname(), None, take, print, lambda _: ended.set())
        async with server:
            await found.open()
            assert found._writer is not None
            found._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            await ended.wait()
        assert found.ended == "it takes no answers"
        assert 10 < len(told) < 100_000

    asyncio.run(asyncio.wait_for(listen(), 10))


def test_a_primary_that_sends_byte_by_byte_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primary, "MESSAGE", 0.1)
    sent = 0

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionError):
            while sent < 1000:
                writer.write(b"\1")
                await writer.drain()
                sent += 1
                await asyncio.sleep(0.005)

    async def ask() -> None:
        server = await asyncio.start_server(drip, ADDRESS, 0)
        address = server.sockets[0].getsockname()
        found = primary.Primary(address, None, bool, print, print)
        async with server:
            await found.open()
            with pytest.raises(ConnectionError, match="too long"):
                await found.ask(b"\1z\4test\0", rr.AXFR)

    asyncio.run(asyncio.wait_for(ask(), 10))
    assert 10 < sent < 200


def test_a_connection_that_breaks_is_told_in_words() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async def ask() -> None:
        server = await asyncio.start_server(reset, ADDRESS, 0)
        found = primary.Primary(server.sockets[0].getsockname(), None, bool, print, print)
        async with server:
            await found.open()
            with pytest.raises(ConnectionError, match=r"^connection reset by peer$"):
                await found.ask(b"\1z\4test\0", rr.AXFR)

    asyncio.run(asyncio.wait_for(ask(), 10))


def test_without_a_copy_names_are_servfail_and_the_start_waits_for_nobody(serve: Callable[..., Server]) -> None:
    with Primary(master(1), "silent") as primary:
        started = time.monotonic()
        server = serve(corefile=corefile(primary), program=HASTY)
        assert time.monotonic() - started < 4
        assert code(server, "h1.z.test") == "SERVFAIL"
        server._wait(lambda: bool(primary.asked), 5, "a question")
        primary.how = "closed"
        primary.go_on.set()
        found = "1 zones cannot be fetched"
        server._wait(lambda: found in server.get("/", server.metrics_port).body, 10, "the status page")
        assert server.metrics().value("kdns_zone_files_unusable") == 0
        assert server.terminate() < 4


FALLBACK = """
test:$dns {
    bind 127.0.0.1
    cache
    secondary alias.test {
        transfer from $alias
    }
    secondary z.test {
        transfer from $primary
        fallback
    }
    forward . $upstream
}
"""


def test_names_of_a_zone_that_is_not_here_may_be_asked_of_another_server(serve: Callable[..., Server]) -> None:
    with (
        FakeUpstream() as upstream,
        Primary(master(1, expire=1), "closed") as primary,
        Primary(master(1, "to CNAME h1.z.test.\n", expire=0)) as other,
    ):
        text = FALLBACK.replace("$primary", f"{ADDRESS}:{primary.port}").replace("$upstream", upstream.to)
        server = serve(corefile=text.replace("$alias", f"{ADDRESS}:{other.port}"), program=HASTY)
        server._wait(lambda: serial(server, "alias.test") == 1, 10, "the other copy")
        for name in ("h1.z.test", "h1.z.test", "nothing.z.test"):
            assert server.texts(name) == ["192.0.2.1"]  # of the other server
        assert upstream.names() == ["h1.z.test", "nothing.z.test"]  # the second one was in the cache
        assert server.texts("to.alias.test") == ["192.0.2.1"]
        primary.how = "whole"
        server._wait(lambda: server.texts("h1.z.test") == ["192.0.2.2"], 12, "the copy")
        asked = upstream.names()
        assert code(server, "nothing.z.test") == "NXDOMAIN"
        assert server.texts("to.alias.test") == ["192.0.2.2"]
        assert upstream.names() == asked
        primary.how = "closed"
        server._wait(lambda: server.texts("h1.z.test") == ["192.0.2.1"], 10, "the end of the copy")
        assert server.texts("to.alias.test") == ["192.0.2.1"]
        assert other.asked.count("SOA") >= 2
        assert "alias.test.: no primary" not in server.log  # it lasts for no time, but is there


def addresses(data: bytes) -> list[str]:
    return [rdata.address for rrset in dns.message.from_wire(data).answer for rdata in rrset]


def test_what_another_server_says_too_late_is_not_what_anybody_gets(serve: Callable[..., Server]) -> None:
    held, go_on = threading.Event(), threading.Event()

    async def late(asked: Asked) -> None:
        if asked.rdtype == "A":
            held.set()
            await asyncio.to_thread(go_on.wait, 10)
        await usual(asked)

    with FakeUpstream(late) as upstream, Primary(master(1), "closed") as primary:
        text = FALLBACK.replace("$primary", f"{ADDRESS}:{primary.port}").replace("$upstream", upstream.to)
        server = serve(corefile=text.replace("$alias", f"{ADDRESS}:{primary.port}"), program=HASTY)
        query = dns.message.make_query("h1.z.test", "A")
        with server.udp_socket() as first, server.udp_socket() as second:
            first.send(query.to_wire())
            assert held.wait(5)
            primary.how = "whole"
            server._wait(lambda: serial(server, "z.test") == 1, 5, "the copy")
            second.send(query.to_wire())
            go_on.set()
            for sock in (first, second):
                sock.settimeout(5)
                assert addresses(sock.recv(4096)) == ["192.0.2.2"]
        assert server.texts("h1.z.test") == ["192.0.2.2"]


def test_a_primary_has_to_sign_if_we_do(serve: Callable[..., Server]) -> None:
    with Primary(master(1)) as primary:
        text = f"z.test:$dns {{\n    bind 127.0.0.1\n{SECONDARY}}}\n".replace("$primary", f"127.0.0.1:{primary.port}")
        server = serve(corefile=text, program=HASTY)
        server._wait(lambda: "a response is not signed" in server.log, 10, "the refusal")
        assert code(server, "h1.z.test") == "SERVFAIL"
        primary.how = "half"
        server._wait(lambda: "the last response is not signed" in server.log, 15, "the refusal")
        assert code(server, "h1.z.test") == "SERVFAIL"
        primary.how = "signed"
        server._wait(lambda: code(server, "h1.z.test") == "NOERROR", 15, "a copy")


# A cluster's zone

CLUSTER = f"""
cluster.local:$dns {{
    bind 127.0.0.1
    ready $host:$ready
    tsig {{
        secret {KEY} {SECRET}
        require AXFR IXFR
    }}
    kubernetes cluster.local {{
        manifests $manifests
    }}
    transfer {{
        to 127.0.0.1:$follower
    }}
}}
"""


def cluster(round: int) -> list[objects.Object]:
    return [objects.service(f"s{number:03}", ips=[f"10.{round}.0.{number + 1}"]) for number in range(100)]


def has(server: Server, name: str, address: str) -> bool:
    """Whether this is a name's address. A query may get no answer while a server starts on a busy machine."""
    with contextlib.suppress(dns.exception.Timeout):
        return server.texts(name) == [address]
    return False


def test_a_copy_of_a_cluster_changes_with_it(serve: Callable[..., Server]) -> None:
    port = ports.free_port([ADDRESS])
    central = serve(cluster(1), corefile=CLUSTER.replace("$follower", str(port)))
    text = f"cluster.local:$dns {{\n    bind 127.0.0.1\n    prometheus $host:$metrics\n{SECONDARY}}}\n"
    copy = serve(corefile=text.replace("$primary", f"127.0.0.1:{central.port}"), dns_port=port, program=HASTY)
    name = "s007.default.svc.cluster.local"
    copy._wait(lambda: has(copy, name, "10.1.0.8"), 10, "the copy")
    for round in range(2, 5):
        central.write_objects(cluster(round))
        copy._wait(lambda wanted=f"10.{round}.0.8": has(copy, name, wanted), 10, f"round {round}")
    assert transfers(copy, "cluster.local", "axfr") == 1
    assert transfers(copy, "cluster.local", "ixfr") >= 3
    central.kill()
    assert copy.texts(name) == ["10.4.0.8"]  # it needs nobody
    central.write_objects(cluster(6))
    central.start()
    copy._wait(lambda: has(copy, name, "10.6.0.8"), 10, "what has changed meanwhile")
    assert transfers(copy, "cluster.local", "axfr") == 1
    copy.kill()
    central.write_objects(cluster(7))
    copy.start()
    copy._wait(lambda: has(copy, name, "10.7.0.8"), 10, "what has changed since")


# The directive


def test_options() -> None:
    found = options(
        "secondary A.test b.test {\ntransfer from 192.0.2.1 [2001:db8::1]:54\ntransfer from 192.0.2.2:5300\n"
        "fallthrough b.test\nfallback\n}"
    )
    (copy,) = found.copies
    assert copy.zones == ("a.test.", "b.test.")
    assert copy.primaries == (("192.0.2.1", 53), ("2001:db8::1", 54), ("192.0.2.2", 5300))
    assert (copy.key, copy.fallback, copy.fallthrough) == (None, True, ("b.test.",))
    several = options("secondary a.test {\ntransfer from 192.0.2.1\n}\nsecondary b.test {\ntransfer from 192.0.2.2\n}")
    assert [copy.zones for copy in several.copies] == [("a.test.",), ("b.test.",)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("secondary", ["1: secondary has no `transfer from`"]),
        ("secondary {\ntransfer from\n}", ['2: secondary: "transfer" has 1 argument']),
        ("secondary {\ntransfer to *\n}", ['2: secondary: "to" is not from']),
        ("secondary {\ntransfer from example.org\n}", ['2: secondary: "example.org" is no address']),
        ("secondary {\ntransfer from [fd00::a\n}", ['2: secondary: "[fd00::a" is no address']),
        (
            "secondary {\ntransfer from 192.0.2.1\ncatalog\n}",
            ['2: secondary: "catalog" is not supported by this version of kdns'],
        ),
        ("secondary {\ntransfer from 192.0.2.1\nfallback z.test\n}", ['2: secondary: "fallback" has 1 argument']),
        ("secondary {\ntransfer from 192.0.2.1\nkey a..\n}", ['2: secondary: "a.." is no name of a key']),
        ("secondary {\ntransfer from 192.0.2.1\nkey a.b\n}", ['2: secondary: this server block has no key "a.b."']),
        (
            "secondary {\ntransfer from 192.0.2.1\n}\nsecondary example.org {\ntransfer from 192.0.2.1\n}",
            ["4: secondary: the zone example.org. is given twice"],
        ),
    ],
)
def test_mistakes_are_refused(text: str, expected: list[str]) -> None:
    assert [one.partition(": ")[2] for one in refused(text)] == [one.partition(": ")[2] for one in expected]


def test_a_key_is_one_of_the_server_block() -> None:
    body = "secondary {\ntransfer from 192.0.2.1\nkey KEY.test\n}\n"
    keys = f"tsig {{\nsecret {KEY} {SECRET}\n}}\n"
    assert loads(f"z.test {{\n{keys}{body}}}").blocks
    with pytest.raises(ConfigError, match="no key"):
        loads(f"z.test {{\n{body}}}\nother.test {{\n{keys}whoami\n}}")
