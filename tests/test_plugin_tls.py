"""tls: DNS over TLS as clients see it, and what becomes of certificates."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import dns.message
import dns.query
import pytest

from kdns.errors import ConfigError
from kdns.observe.counters import Region
from kdns.plugins import loads
from kdns.plugins.budget import Budget
from kdns.plugins.tls import Options
from kdns.server import tcp
from kdns.server.certificates import Certificate, Credential
from kdns.server.https import HttpConnection
from kdns.server.respond import Responder, Waiting
from kdns.server.secure import BYTES as TLS_BYTES
from kdns.zone.changes import Changes
from tests.support import objects, ports, procs
from tests.support.configs import refused
from tests.support.server import Server, read_message
from tests.support.tls import Issued, connect, framed

RETRY = bytes.fromhex("CF21AD74E59A6111BE1D8C021E65B891C2A211167ABB8C5E079E09E2C8A8339C")
WEB = "web.default.svc.cluster.local"
MANY = "many.default.svc.cluster.local"
CLUSTER, ADDRESSES = objects.many(2000)
COREFILE = """\
(common) {
    root $folder
    ready $host:$ready
    prometheus $host:$metrics
    timeouts {
        read 1s
        idle 3s
    }
    kubernetes cluster.local {
        manifests $manifests
    }
}
.:$dns {
    bind 127.0.0.1
    import common
}
tls://.:$tls tls://other.test:$tls {
    bind 127.0.0.1
    import common
    tls server.crt server.key
}
tls://.:$given {
    bind 127.0.0.1
    tls $folder/server.crt $folder/server.key $folder/ca.pem {
        client_auth verify_if_given
        keylog $folder/keys.log
    }
    whoami
}
tls://.:$required {
    bind 127.0.0.1
    root $folder
    tls server.crt server.key ca.pem {
        client_auth require_and_verify
    }
    timeouts {
        maxtcpqueries 2
    }
    whoami
}
"""


class Site:
    """One server for all tests, and its ports."""

    def __init__(self, folder: Path) -> None:
        self.issued = Issued(folder)
        self.issued.issue("client", "client.test")
        (folder / "other").mkdir()
        self.stranger = Issued(folder / "other")
        self.tls, self.given, self.required = (ports.free_port() for _ in range(3))
        text = COREFILE.replace("$folder", str(folder))
        for name in ("tls", "given", "required"):
            text = text.replace(f":${name} ", f":{getattr(self, name)} ")
        self.server = Server(folder / "server", CLUSTER, corefile=text)

    def closed(self, reason: str) -> float:
        return self.server.metrics().value("kdns_tcp_connections_closed_total", reason=reason)

    def failed(self) -> float:
        return self.server.metrics().value("kdns_tls_handshakes_total", result="failed")

    def connect(self, *alpn: str, port: int = 0, own: str = "") -> ssl.SSLSocket:
        return connect(port or self.tls, self.issued.client(*alpn, own=own))

    def raw(self, port: int = 0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port or self.tls), 3)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("tls"))
    with site.server:
        yield site


def query(ident: int, name: str = WEB) -> bytes:
    return framed(dns.message.make_query(name, "A", id=ident).to_wire())


class Bare:
    """A client whose bytes of TLS a test sees. size: of what it sends together in its handshake."""

    def __init__(self, context: ssl.SSLContext, sock: socket.socket, size: int = 16384) -> None:
        self.sock = sock
        self.heard = b""
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="dns.test")
        for _ in range(5):
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                data = self.outgoing.read()
                for at in range(0, len(data), size):
                    sock.sendall(data[at : at + size])
                found = sock.recv(65536)
                self.heard += found
                self.incoming.write(found)

    def rest(self) -> bytes:
        """All that the server still says."""
        found = b""
        while data := self.sock.recv(65536):
            self.incoming.write(data)
            with contextlib.suppress(ssl.SSLError):
                while part := self.tls.read(65536):
                    found += part
        return found


def answers(sock: ssl.SSLSocket, count: int) -> list[int]:
    """The IDs of so many answers, in the order in which they come."""
    return [int.from_bytes((read_message(sock) or b"\xff\xff")[:2], "big") for _ in range(count)]


# Answers


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_answer_is_that_of_tcp_whole_whatever_its_size(site: Site, version: ssl.TLSVersion) -> None:
    context = site.issued.client("dot", version=version)
    asked = dns.message.make_query(WEB, "A")
    found = dns.query.tls(asked, "127.0.0.1", 3, site.tls, ssl_context=context, server_hostname="dns.test", verify=True)
    assert [str(rrset[0]) for rrset in found.answer] == ["10.96.0.1"]
    large = []
    for sock in (connect(site.tls, context), site.raw(site.server.port)):
        with sock:
            sock.sendall(query(7, MANY))
            large.append(read_message(sock))
    assert large[0] == large[1]
    assert len(large[0] or b"") > 30000


def test_queries_are_answered_in_one_burst_and_byte_by_byte(site: Site) -> None:
    count = 2 * tcp.TURN + 1
    with site.connect("dot") as sock:
        assert sock.selected_alpn_protocol() == "dot"
        sock.sendall(b"".join(query(number) for number in range(count)) + query(9)[:1])
        assert answers(sock, count) == list(range(count))
        for byte in query(9)[1:]:
            sock.sendall(bytes([byte]))
        assert answers(sock, 1) == [9]


def test_an_answer_that_is_ready_does_not_wait_for_one_that_is_not(site: Site) -> None:
    with site.connect() as sock:
        assert sock.selected_alpn_protocol() is None
        sock.sendall(query(1, MANY) + query(2) + query(3, "nothing.other.test"))
        assert sorted(answers(sock, 3)) == [1, 2, 3]


def test_a_client_that_has_said_its_last_word_hears_ours(site: Site) -> None:
    with site.connect("dot") as sock:
        sock.sendall(query(1) + query(2))
        assert answers(sock, 2) == [1, 2]
        raw = sock.unwrap()  # sends close_notify, and waits for that of the server
        assert raw.recv(1) == b""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_all_that_was_asked_before_the_last_word_is_answered(site: Site, version: ssl.TLSVersion) -> None:
    """More than goes in one turn, and the last word, come together."""
    count = 2 * tcp.TURN + 50
    with site.raw() as sock:
        client = Bare(site.issued.client("dot", version=version), sock)
        for number in range(count):
            client.tls.write(query(number))
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.unwrap()
        sock.sendall(client.outgoing.read())
        found = client.rest()
    ids = []
    while found:
        size = int.from_bytes(found[:2], "big")
        ids.append(int.from_bytes(found[2:4], "big"))
        found = found[2 + size :]
    assert ids == list(range(count))


def test_a_transfer_is_refused(site: Site) -> None:
    asked = dns.message.make_query("cluster.local", "AXFR")
    with site.connect("dot") as sock:
        sock.sendall(framed(asked.to_wire()))
        assert dns.message.from_wire(read_message(sock) or b"").rcode() == 5


def test_metrics_have_the_labels_of_coredns(site: Site) -> None:
    server = f"tls://127.0.0.1:{site.tls}"

    def count() -> float:
        labels = {"server": server, "proto": "tcp", "zone": "other.test.", "family": "1"}
        return site.server.metrics().value("coredns_dns_requests_total", **labels)

    before = count()
    with site.connect("dot") as sock:
        sock.sendall(query(1, "a.other.test") * 3)
        answers(sock, 3)
    assert count() == before + 3
    metrics = site.server.metrics()
    assert f'coredns_plugin_enabled{{name="tls",server="{server}",view="",zone="other.test."}} 1.0' in metrics.text
    path = str(site.issued.folder / "server.crt")
    assert metrics.value("kdns_tls_certificate_expiry_timestamp_seconds", certificate=path) > time.time()
    assert metrics.value("kdns_tls_handshakes_total", result="complete") > 0


def test_there_is_no_udp_socket(site: Site) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", site.tls))


# Hostile clients


def test_what_is_no_tls_is_closed_and_counted(site: Site) -> None:
    before = site.closed("tls"), site.failed()
    several = b"".join(b"\x16\x03\x01\0\1" + bytes([byte]) for byte in b"\x01\x01\xff\xf0")
    for data in (
        *(b"GET / HTTP/1.1\r\n\r\n", query(1), os.urandom(3000), b"\x16\x03\x01\xff\xff" + bytes(100)),
        *(b"\x16\x03\x01\0\4\1\1\xff\xf0", several, b"\x16\x03\x01\0\0" * 200),  # more than is read, and nothing
    ):
        with site.raw() as sock:
            sock.sendall(data)
            with contextlib.suppress(ConnectionError):
                while sock.recv(4096):
                    pass
    assert (site.closed("tls"), site.failed()) == (before[0] + 7, before[1] + 7)


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_what_a_client_says_first_may_come_in_small_records(site: Site, size: int) -> None:
    data = hello()[5:]
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    with site.raw() as sock:
        sock.sendall(b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts))
        assert sock.recv(6)[::5] == b"\x16\x02"  # a handshake record with what the server says first


def with_another_key(data: bytes) -> bytes:
    """The first message of a client that has a key only for a group that nobody knows (RFC 8446 4.2.8)."""
    group = data.index(b"\0\x1d", data.index(b"\0\x0a\0") + 6)
    data = data[:group] + b"\x2a\x2a" + data[group + 2 :]
    key = data.index(b"\0\x33\0") + 6
    assert data[key : key + 2] == b"\0\x1d"
    return data[:key] + b"\x2a\x2a" + data[key + 2 :]


@pytest.mark.parametrize("between", [b"", b"\x14\3\3\0\1\1", b"\x15\3\3\0\2\1\x5a"])
@pytest.mark.parametrize("together", [False, True])
def test_a_client_that_has_to_begin_anew_has_no_more_room(site: Site, between: bytes, together: bool) -> None:
    before = site.failed()
    large = between + b"\x16\3\3\0\4\1\1\xff\xf0"
    with site.raw() as sock:
        sock.sendall(with_another_key(hello()) + (large if together else b""))
        assert RETRY in sock.recv(4096)
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"" if together else large)
            assert sock.recv(1) == b""
    assert site.failed() == before + 1


@pytest.mark.parametrize("size", [100, 16384])
def test_a_client_may_begin_anew(tmp_path: Path, size: int) -> None:
    """Its key is for a group that the server does not have; both have another one."""
    asyncio.run(_begin_anew(Issued(tmp_path), size))


async def _begin_anew(issued: Issued, size: int) -> None:
    region = Region.create()
    connections = tcp.Connections(region)
    responder = Responder("tls://:853", {}, region, pytest.fail, Waiting())
    credential = Credential(
        Options(str(issued.folder / "server.crt"), str(issued.folder / "server.key")), ("dot",), None
    )
    credential.context().set_ecdh_curve("prime256v1")

    def talk(port: int) -> tuple[bytes, bytes]:
        with socket.create_connection(("127.0.0.1", port), 3) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = Bare(issued.client("dot"), sock, size)
            client.tls.write(query(5))
            with contextlib.suppress(ssl.SSLWantReadError):
                client.tls.unwrap()
            sock.sendall(client.outgoing.read())
            return client.heard, client.rest()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = tcp.TcpServer(listening, responder, Changes.create(), connections, Budget(), certificate=credential)
        server.start()
        heard, answer = await asyncio.get_running_loop().run_in_executor(None, talk, listening.getsockname()[1])
        await server.stop()
        await connections.drain(0)
    assert RETRY in heard
    assert answer[2:4] == b"\0\5"


def test_a_handshake_that_does_not_end_is_closed_in_time_and_holds_up_nobody(site: Site) -> None:
    before = site.closed("handshake")
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(site.raw()) for _ in range(10)]
        for sock in silent[:5]:
            sock.sendall(hello()[:100])
        begun = time.monotonic()
        with site.connect("dot") as sock:
            sock.sendall(query(1))
            assert answers(sock, 1) == [1]
        assert time.monotonic() - begun < 0.9
        assert all(sock.recv(1) == b"" for sock in silent)
        assert 0.9 < time.monotonic() - begun < 4
    assert site.closed("handshake") == before + 10


def hello() -> bytes:
    """What a client sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="dns.test")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_of_handshakes_that_are_under_way_there_are_no_more_than_a_number(site: Site) -> None:
    before = site.closed("crowded")
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(site.raw()) for _ in range(tcp.HANDSHAKES + 5)]
        procs.wait_until(lambda: site.closed("crowded") == before + 5, 3, "the end of those that came first")
        assert all(sock.recv(1) == b"" for sock in socks[:5])
        with site.connect("dot") as sock:
            sock.sendall(query(1))
            assert answers(sock, 1) == [1]


def test_bytes_that_were_changed_on_the_way_end_the_connection(site: Site) -> None:
    before = site.closed("tls")
    with site.raw() as sock:
        client = Bare(site.issued.client("dot"), sock)
        client.tls.write(query(1))
        data = bytearray(client.outgoing.read())
        data[-1] ^= 1
        sock.sendall(data)
        with contextlib.suppress(ConnectionError):
            while found := sock.recv(65536):
                client.incoming.write(found)
        with pytest.raises(ssl.SSLError, match=r"(?i)bad record mac"):
            client.tls.read(1)
    assert site.closed("tls") == before + 1


def test_nobody_negotiates_anew(site: Site, needs: Callable[..., None]) -> None:
    needs("openssl")
    before = site.closed("tls")
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{site.tls}", "-tls1_2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert any(b"Verify return code" in line for line in client.stdout)
        client.stdin.write(b"R\n")  # asks for it
        client.stdin.flush()
        procs.wait_until(lambda: site.closed("tls") == before + 1, 3, "the end of the connection")
        client.stdin.close()


@pytest.mark.parametrize("kind", [tcp.Connection, HttpConnection])
def test_what_tls_takes_counts_as_held(tmp_path: Path, kind: type[tcp.Connection]) -> None:
    """Where memory is short, the one that was idle longest goes, whether the new one takes more or not."""
    asyncio.run(_hold(Issued(tmp_path), 4, kind))


async def _hold(issued: Issued, most: int, kind: type[tcp.Connection]) -> None:
    changes, region = Changes.create(), Region.create()
    connections = tcp.Connections(region, most * TLS_BYTES)
    responder = Responder("tls://:853", {}, region, lambda _: None, Waiting())
    credential = Credential(
        Options(str(issued.folder / "server.crt"), str(issued.folder / "server.key")), ("dot",), None
    )
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:

        async def connected(listening: socket.socket) -> ssl.SSLSocket:
            where = listening.getsockname()[1]
            return stack.enter_context(await loop.run_in_executor(None, connect, where, issued.client()))

        listening = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        kinds: list[type[tcp.Connection]] = [tcp.Connection, kind]
        servers = [
            tcp.TcpServer(sock, responder, changes, connections, Budget(), certificate=credential, kind=each)
            for sock, each in zip(listening, kinds, strict=True)
        ]
        for server in servers:
            server.start()
        socks = [await connected(listening[0]) for _ in range(most)]
        socks.append(await connected(listening[1]))
        for _ in range(1000):
            await asyncio.sleep(0)
            if not connections.shaking:
                break
        left = most - 1 if kind is tcp.Connection else most - 2
        assert [_is_open(sock) for sock in socks] == [False] * (most - left) + [True] * (left + 1)
        assert len(connections.open) == left + 1
        for server in servers:
            await server.stop()
        await connections.drain(0)


def _is_open(sock: ssl.SSLSocket) -> bool:
    sock.settimeout(0.05)
    try:
        return sock.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


# Who may connect


def test_a_client_may_show_a_certificate_and_then_it_has_to_be_good(site: Site) -> None:
    for own in ("", "client"):
        with site.connect(port=site.given, own=own) as sock:
            sock.sendall(query(1, "a.test"))
            assert answers(sock, 1) == [1]
    refuses(site, site.given, stranger=True)
    lines = (site.issued.folder / "keys.log").read_text()
    assert "SERVER_TRAFFIC_SECRET_0" in lines
    assert (site.issued.folder / "keys.log").stat().st_mode & 0o777 == 0o600
    assert "the secrets of all connections are written to" in site.server.log


def test_a_client_has_to_show_a_certificate_and_has_a_number_of_queries(site: Site) -> None:
    with site.connect(port=site.required, own="client") as sock:
        sock.sendall(query(1, "a.test") + query(2, "a.test") + query(3, "a.test"))
        assert answers(sock, 2) == [1, 2]
        assert sock.recv(1) == b""
    refuses(site, site.required, stranger=True)
    refuses(site, site.required, stranger=False)


def refuses(site: Site, port: int, *, stranger: bool) -> None:
    """A client with a certificate of another authority, or none, is told so and gets no answer."""
    before = site.closed("tls")
    context = site.issued.client()
    if stranger:
        context.load_cert_chain(site.stranger.folder / "server.crt", site.stranger.folder / "server.key")
    with pytest.raises((ssl.SSLError, ConnectionError)), connect(port, context) as sock:  # noqa: PT012
        sock.sendall(query(1, "a.test"))
        if not sock.recv(1):
            raise ConnectionError("closed")
    assert site.closed("tls") == before + 1


# Certificates that change


def serial(port: int, issued: Issued) -> object:
    with connect(port, issued.client()) as sock:
        found = sock.getpeercert()
        return found and found["serialNumber"]


@pytest.mark.one_speed
def test_changed_files_are_read_again_and_bad_ones_leave_the_last_good_ones_to_new_workers_too(
    tmp_path: Path,
) -> None:
    """As Secrets are mounted: a link to a folder is replaced."""
    (tmp_path / "one").mkdir()
    issued = Issued(tmp_path / "one")
    (tmp_path / "data").symlink_to("one")
    port = ports.free_port()
    corefile = (
        COREFILE[: COREFILE.index("tls://.:$tls")].replace("$folder", str(tmp_path))
        + f"""\
tls://.:{port} {{
    bind 127.0.0.1
    tls {tmp_path}/data/server.crt {tmp_path}/data/server.key
    whoami
}}
"""
    )
    with Server(tmp_path / "server", CLUSTER, corefile=corefile) as server:

        def unusable() -> float:
            return server.metrics().value("kdns_tls_certificate_unusable")

        first = serial(port, issued)
        open_before = connect(port, issued.client())
        (tmp_path / "two").mkdir()
        for name in ("server.crt", "server.key"):
            (tmp_path / "two" / name).write_bytes(b"no certificate")
        link(tmp_path, "two")
        procs.wait_until(lambda: unusable() == 1, 5, "the bad files")
        assert "stays in use" in server.log
        assert serial(port, issued) == first
        (worker,) = server.worker_pids()
        os.kill(worker, signal.SIGKILL)
        procs.wait_until(lambda: server.worker_pids() not in ([], [worker]) and server.answers(), 5, "a new worker")
        assert serial(port, issued) == first
        server.signal(signal.SIGUSR1)
        procs.wait_until(lambda: "has no certificate in PEM format" in server.log, 5, "the refusal")
        procs.wait_until(lambda: "the old one goes on" in server.log, 5, "the old configuration")
        assert serial(port, issued) == first
        issued.folder = tmp_path / "two"
        issued.issue("server")
        (tmp_path / "two" / "ca.pem").write_bytes((tmp_path / "one" / "ca.pem").read_bytes())
        procs.wait_until(lambda: serial(port, issued) != first, 5, "the new certificate")
        procs.wait_until(lambda: unusable() == 0, 5, "the good files")
        assert "was read again; it is good until" in server.log
        open_before.close()


def link(folder: Path, target: str) -> None:
    """Let `data` be another folder, in one step."""
    (folder / "new").symlink_to(target)
    (folder / "new").replace(folder / "data")


def test_a_certificate_that_cannot_be_loaded_now_is_loaded_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor is left, for a while."""
    issued = Issued(tmp_path)
    certificate = Certificate(Options(str(tmp_path / "server.crt"), str(tmp_path / "server.key")))
    issued.issue("server")
    with monkeypatch.context() as without:
        without.setattr(os, "memfd_create", Mock(side_effect=OSError(errno.EMFILE, "too many open files")))
        assert not certificate.look()
        assert not certificate.look()
    assert "cannot be used: [Errno 24]" in certificate.problem
    assert certificate.look()
    assert certificate.problem == ""


def test_files_that_are_replaced_one_after_the_other_are_no_problem_at_once(tmp_path: Path) -> None:
    issued = Issued(tmp_path)
    certificate = Certificate(Options(str(tmp_path / "server.crt"), str(tmp_path / "server.key")))
    assert not certificate.look()
    old = (tmp_path / "server.key").read_bytes()
    issued.issue("server")
    new = (tmp_path / "server.key").read_bytes()
    (tmp_path / "server.key").write_bytes(old)
    assert not certificate.look()
    assert certificate.problem == ""
    assert not certificate.look()
    assert "the key is not that of the certificate" in certificate.problem
    (tmp_path / "server.key").write_bytes(new)
    assert certificate.look()
    assert certificate.problem == ""
    assert certificate.material.certificate == (tmp_path / "server.crt").read_bytes()


def test_sessions_that_openssl_remembers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdns.server.certificates.RENEW", 3)
    Issued(tmp_path)
    credential = Credential(Options(str(tmp_path / "server.crt"), str(tmp_path / "server.key")), ("dot",), None)
    assert len({id(context) for context in [credential.context() for _ in range(7)]}) == 3


# What is wrong in a Corefile


@pytest.mark.one_speed
def test_options() -> None:
    text = "tls://a {\nroot /x\ntls c k /ca {\nclient_auth verify_if_given\nkeylog log\n}\n}"
    assert loads(text).blocks[0].plugins["tls"] == Options("/x/c", "/x/k", "/ca", "verify_if_given", "/x/log")
    assert loads("tls://a {\ntls c k\n}").blocks[0].plugins["tls"] == Options("c", "k")


@pytest.mark.one_speed
@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ("tls", "1: tls has 0 arguments"),
        ("tls c", "1: tls has 1 argument"),
        ("tls c k a b", "1: tls has 4 arguments"),
        ('tls "" k', "1: tls has an empty path"),
        ("tls c k {\nclient_auth\n}", '2: tls: "client_auth" has 0 arguments'),
        ("tls c k {\nclient_auth any\n}", '2: tls: "any" is no type of client_auth'),
        ("tls c k {\nclient_auth require\n}", "2: tls: client_auth require, which looks at no certificate, is not"),
        ("tls c k {\nclient_auth request\n}", "2: tls: client_auth request, which looks at no certificate, is not"),
        ("tls c k {\nkeylog\n}", '2: tls: "keylog" has 0 arguments'),
        ('tls c k {\nkeylog ""\n}', "2: tls: the path is empty"),
        ("tls c k {\nciphers x\n}", '2: tls has no option "ciphers"'),
        ("tls {\nacme a.org\n}", "1: tls: acme is not supported"),
        ("tls c k\ntls c k", "2: tls is given twice"),
    ],
)
def test_what_is_refused(directive: str, message: str) -> None:
    found = refused(directive, "tls://example.org")
    assert [each[: len(message)] for each in found] == [message]


@pytest.mark.one_speed
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tls://a {\nwhoami\n}", "1: tls://a has no certificate"),
        (".:53 {\ntls c k\n}", "2: tls is used by no key of this server block"),
        ("tls://a:99 {\ntls c k\n}\ntls://b:99 {\ntls c j\n}", "4: tls://b.:99 shares its address with Corefile:1"),
        (".:99 {\nwhoami\n}\ntls://b:99 {\ntls c j\n}", "4: tls://b.:99 is at the port of dns://. in Corefile:1"),
        (
            "tls://a:99 {\nbind 127.0.0.1\ntls c k\n}\ntls://b:99 {\ntls c j\nbind 127.0.0.2 127.0.0.1\n}",
            "5: tls://b.:99 shares its address with Corefile:1",
        ),
    ],
)
def test_what_does_not_fit_together(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(text)
    assert [f"{each.line}: {each.message}"[: len(message)] for each in caught.value.mistakes] == [message]


def test_different_addresses_may_have_different_certificates_and_schemes() -> None:
    bound = "bind 127.0.0.{}\ntls c {}\n}}\n"
    text = f"tls://a:99 {{\n{bound.format(1, 'k')}tls://b:99 {{\n{bound.format(2, 'j')}.:99 {{\nbind 127.0.0.3\n}}\n"
    assert len(loads(text).blocks) == 3


@pytest.mark.one_speed
def test_files_that_cannot_be_used_keep_the_server_from_starting(tmp_path: Path) -> None:
    Issued(tmp_path)
    (tmp_path / "other").mkdir()
    Issued(tmp_path / "other")
    (tmp_path / "ca.bad").write_text("nothing")
    text = """\
tls://a:$dns {
    root $folder
    tls missing.crt server.key
}
tls://.:$ready {
    root $folder
    tls server.crt other/server.key
}
tls://.:$metrics {
    root $folder
    tls server.crt server.key ca.bad
}
"""
    server = Server(tmp_path / "server", corefile=text.replace("$folder", str(tmp_path)))
    code, said = server.run()
    assert code != 0
    checked = subprocess.run(
        [sys.executable, "-m", "kdns", "check", str(server.conf)], capture_output=True, text=True, timeout=20
    )
    assert checked.returncode == 1
    assert [line for line in checked.stderr.splitlines() if line not in said] == []
    assert checked.stderr.count("Corefile:") == 3
    lines = [line.partition("Corefile")[2] for line in said.splitlines() if "Corefile" in line]
    assert [line.partition(": ")[0] for line in lines] == [":3", ":7", ":11"]
    assert f"{tmp_path}/missing.crt cannot be read: No such file or directory" in lines[0]
    assert "the key is not that of the certificate" in lines[1]
    assert "ca.bad cannot be used" in lines[2]
