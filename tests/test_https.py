"""https:// servers (RFC 8484): requests over HTTP/2 and HTTP/1.1, by TLS and without, and clients that break things."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import itertools
import signal
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import dns.message
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import httpx
import hypothesis.strategies as st
import pytest
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings
from hypothesis import given, settings

from kdns.observe.counters import QueryCounters, Region
from kdns.plugins.budget import Budget
from kdns.plugins.chain import Next
from kdns.server import doh, http2, tcp
from kdns.server.doh import BrokenError
from kdns.server.http1 import Http1
from kdns.server.http2 import Http2
from kdns.server.https import HttpConnection
from kdns.server.respond import Block, Responder, Waiting
from kdns.upstream.steps import in_task
from kdns.wire import message
from kdns.zone.changes import Changes
from tests.support import objects, ports, procs
from tests.support.server import Server, read_message
from tests.support.tls import Issued, connect, framed

WEB = "web.default.svc.cluster.local"
MANY = "many.default.svc.cluster.local"
CLUSTER, ADDRESSES = objects.many(3500)
COREFILE = """\
(common) {
    root $folder
    ready $host:$ready
    prometheus $host:$metrics
    timeouts {
        read 1s
        write 1s
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
https://.:$https {
    bind 127.0.0.1
    import common
    tls server.crt server.key
    acl dropped.test {
        drop
    }
    forward slow.test $silent {
        prefer_udp
    }
    whoami
}
https://.:$http {
    bind 127.0.0.1
    timeouts {
        maxtcpqueries 3
    }
    whoami
}
"""


class Site:
    """One server for all tests, and its ports. `silent` is an upstream that answers when a test lets it."""

    def __init__(self, folder: Path) -> None:
        self.issued = Issued(folder)
        self.https, self.http = ports.free_port(), ports.free_port()
        self.silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.silent.bind(("127.0.0.1", 0))
        text = COREFILE.replace("$folder", str(folder)).replace(":$https ", f":{self.https} ")
        text = text.replace(":$http ", f":{self.http} ")
        text = text.replace("$silent", f"127.0.0.1:{self.silent.getsockname()[1]}")
        self.server = Server(folder / "server", CLUSTER, corefile=text)

    def closed(self, reason: str) -> float:
        return self.server.metrics().value("kdns_tcp_connections_closed_total", reason=reason)

    def plain(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.http, timeout=3)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("https"))
    with site.server, site.silent:
        yield site


def query(name: str = WEB, rdtype: str = "A") -> bytes:
    return dns.message.make_query(name, rdtype, id=0).to_wire()


def target(data: bytes) -> str:
    return f"/dns-query?dns={base64.urlsafe_b64encode(data).rstrip(b'=').decode()}"


class Client:
    """HTTP/2 by h2, over TLS or plain TCP."""

    def __init__(self, site: Site, *, plain: bool = False, window: int = 65535) -> None:
        if plain:
            self.sock: socket.socket = socket.create_connection(("127.0.0.1", site.http), 3)
        else:
            self.sock = connect(site.https, site.issued.client("h2"))
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.h2.local_settings = Settings(client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.h2.initiate_connection()
        self.statuses: dict[int, int] = {}
        self.heads: dict[int, dict[bytes, bytes]] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: list[int] = []
        self.resets: dict[int, int] = {}
        self.goodbye: h2.events.ConnectionTerminated | None = None
        self.closed = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def ask(self, method: str, path: str, body: bytes = b"", *, finish: bool = True, **fields: str) -> int:
        """Send a request; the number of its stream."""
        stream = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":path", path), (":scheme", "https"), (":authority", "dns.test")]
        self.h2.send_headers(stream, head + list(fields.items()), end_stream=finish and not body)
        while body:
            size = min(self.h2.local_flow_control_window(stream), 16384, len(body))
            if size:
                self.h2.send_data(stream, body[:size], end_stream=finish and size == len(body))
                body = body[size:]
            else:
                self.read()
        return stream

    def get(self, data: bytes) -> int:
        return self.ask("GET", target(data))

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def read(self, *, take: bool = True) -> None:
        """Read once. take: let more come of bodies."""
        self.flush()
        data = self.sock.recv(65536)
        self.closed = not data
        for event in self.h2.receive_data(data) if data else []:
            stream = getattr(event, "stream_id", 0)
            if isinstance(event, h2.events.ResponseReceived):
                self.heads[stream] = dict(event.headers)
                self.statuses[stream] = int(self.heads[stream][b":status"])
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[stream] = self.bodies.get(stream, b"") + event.data
                if take and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.append(stream)
            elif isinstance(event, h2.events.StreamReset):
                self.resets[stream] = event.error_code
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.goodbye = event
        self.flush()

    def wait(self, *streams: int) -> None:
        """Read until these have their whole answers."""
        until = time.monotonic() + 3
        while not set(streams) <= set(self.ended) and not self.closed:
            assert time.monotonic() < until
            self.read()

    def until_closed(self) -> None:
        with contextlib.suppress(OSError, h2.exceptions.ProtocolError):
            for _ in range(1000):
                if self.closed:
                    return
                self.read()


# Answers


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_an_answer_is_that_of_tcp_whatever_its_size(site: Site, method: str, version: str) -> None:
    """As httpx gets it."""
    transport = httpx.HTTPTransport(verify=site.issued.client(), http1=version == "HTTP/1.1", http2=version == "HTTP/2")
    with httpx.Client(transport=transport, trust_env=False) as client:
        for name in (WEB, MANY):
            data = query(name)
            request = client.build_request(
                method,
                f"https://127.0.0.1:{site.https}" + (target(data) if method == "GET" else "/dns-query"),
                content=data if method == "POST" else None,
                extensions={"sni_hostname": "dns.test"},
            )
            found = client.send(request)
            assert (found.status_code, found.http_version) == (200, version)
            with socket.create_connection(("127.0.0.1", site.server.port), 3) as sock:
                sock.sendall(framed(data))
                assert found.content == read_message(sock)
    assert len(found.content) > 56000


@pytest.mark.parametrize("option", ["+https", "+https-get"])
def test_kdig_asks(site: Site, option: str, needs: Callable[..., None]) -> None:
    needs("kdig")
    folder = site.issued.folder
    options = [option, f"+tls-ca={folder}/ca.pem", "+tls-hostname=dns.test", "+short", f"@127.0.0.1#{site.https}"]
    done = subprocess.run(["kdig", *options, WEB], capture_output=True, text=True, timeout=10)
    assert done.stdout == "10.96.0.1\n"


def test_an_answer_says_how_long_it_may_be_kept(site: Site) -> None:
    with Client(site) as client:
        first, second = client.get(query()), client.get(query(f"no.{WEB}"))
        third = client.get(query("a.example", "CNAME"))
        client.wait(first, second, third)
        for stream in (first, second):
            head = client.heads[stream]
            assert head[b"content-type"] == b"application/dns-message"
            assert head[b"cache-control"] == b"max-age=5"
            assert int(head[b"content-length"]) == len(client.bodies[stream])
            assert head[b"date"].endswith(b" GMT")
        assert client.heads[third][b"cache-control"] == b"max-age=0"


def test_many_requests_of_one_connection_are_answered_as_their_answers_are_there(site: Site) -> None:
    site.silent.settimeout(3)
    with Client(site) as client:
        slow = client.get(query("a.slow.test"))
        fast = [client.get(query()) for _ in range(90)]
        client.wait(*fast)
        assert slow not in client.ended
        while True:
            data, upstream = site.silent.recvfrom(4096)
            asked = dns.message.from_wire(data)
            if "a.slow.test" in str(asked.question[0].name):
                break
        site.silent.sendto(dns.message.make_response(asked).to_wire(), upstream)
        client.wait(slow)
        assert {client.statuses[stream] for stream in [slow, *fast]} == {200}


def test_a_transfer_is_refused(site: Site) -> None:
    with Client(site) as client:
        stream = client.ask("POST", "/dns-query", query("cluster.local", "AXFR"))
        client.wait(stream)
        assert dns.message.from_wire(client.bodies[stream]).rcode() == 5


def test_plain_http_for_a_proxy_has_both_versions_and_a_number_of_requests(site: Site) -> None:
    connection = site.plain()
    for number in (1, 2, 3):
        connection.request("POST", "/dns-query", query("a.test"), {"Content-Type": "application/dns-message"})
        reply = connection.getresponse()
        assert (reply.status, reply.getheader("connection")) == (200, "close" if number == 3 else None)
        assert dns.message.from_wire(reply.read()).id == 0
    connection.close()
    with Client(site, plain=True) as client:
        streams = [client.get(query("a.test")) for _ in range(4)]
        client.until_closed()
        assert client.ended == streams[:3]
        assert client.goodbye is not None
        assert client.goodbye.last_stream_id == streams[2]
    assert site.closed("queries") == 2


def test_requests_that_come_together_over_http_1_are_answered_one_after_the_other(site: Site) -> None:
    request = f"GET {target(query('a.test'))} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", site.http), 3) as sock:
        sock.sendall(request + request[:30])
        time.sleep(0.02)
        sock.sendall(request[30:] + request)
        found = b""
        while data := sock.recv(65536):
            found += data
        assert found.count(b"HTTP/1.1 200 OK") == 3


def test_a_client_that_waits_for_it_is_told_to_send_the_body(site: Site) -> None:
    data = query("a.test")
    head = f"POST /dns-query HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", site.http), 3) as sock:
        sock.sendall(head.encode())
        assert sock.recv(4096).startswith(b"HTTP/1.1 100 ")
        sock.sendall(data)
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 OK")


REQUESTS = [
    ("GET", "/", b"", 404),
    ("POST", "/dns-query/x", b"", 404),
    ("GET", target(query()).replace("dns-query", "dns%2Dquery"), b"", 200),
    ("GET", target(query()) + "&x=1", b"", 200),
    ("GET", target(query()) + "==", b"", 400),
    ("GET", target(query()) + "&dns=AAAA", b"", 400),
    ("GET", "/dns-query", b"", 400),
    ("GET", "/dns-query?dns=A", b"", 400),
    ("GET", "/dns-query?dns=%00", b"", 400),
    ("GET", "/dns-query?dns=AA", b"", 400),
    ("POST", "/dns-query", b"short", 400),
    ("POST", "/dns-query", query()[:2] + b"\x80" + query()[3:], 400),
    ("POST", "/dns-query", query(), 200),
    ("POST", "/dns-query", query() + b"\0", 200),
    ("POST", "/dns-query", query("a.dropped.test"), 500),
    ("POST", "/dns-query", bytes(65536), 413),
    ("PUT", "/dns-query", query(), 405),
    ("HEAD", target(query()), b"", 405),
    ("OPTIONS", "*", b"", 404),
]


def test_statuses(site: Site) -> None:
    name, server = "coredns_dns_https_responses_total", f"https://127.0.0.1:{site.https}"
    before = site.server.metrics().value(name, server=server, status="200")
    connection = http.client.HTTPSConnection("127.0.0.1", site.https, timeout=3, context=_by_name(site))
    with Client(site) as client:
        for method, path, body, status in REQUESTS:
            stream = client.ask(method, path, body)
            client.wait(stream)
            assert (path, client.statuses[stream]) == (path, status)
            connection.request(method, path, body or None)
            reply = connection.getresponse()
            reply.read()
            assert (path, reply.status) == (path, status)
    connection.close()
    metrics = site.server.metrics()
    assert metrics.value(name, server=server, status="200") == before + 2 * [row[3] for row in REQUESTS].count(200)
    assert metrics.value(name, server=server, status="413") == 2


def _by_name(site: Site) -> ssl.SSLContext:
    context = site.issued.client("http/1.1")
    context.check_hostname = False
    return context


def test_a_query_that_cannot_be_read_is_answered_with_formerr(site: Site) -> None:
    with Client(site) as client:
        stream = client.ask("POST", "/dns-query", query() + b"\0")
        client.wait(stream)
        assert dns.message.from_wire(client.bodies[stream], ignore_trailing=True).rcode() == 1


# Flow control, resets, ends


def test_an_answer_waits_for_the_windows_of_the_client_and_the_others_do_not(site: Site) -> None:
    with Client(site, window=1000) as client:
        large, small = client.get(query(MANY)), client.get(query())
        client.wait(small)
        assert large not in client.ended
        client.h2.increment_flow_control_window(60000, large)
        client.wait(large)
        assert len(client.bodies[large]) > 56000


def test_answers_that_are_never_taken_end_the_connection_and_are_bounded(site: Site) -> None:
    before = site.closed("slow")
    with Client(site, window=0) as client:
        streams = [client.get(query(MANY)) for _ in range(20)]
        until = time.monotonic() + 4
        while not client.closed and time.monotonic() < until:
            with contextlib.suppress(OSError):
                client.read()
                continue
            break
        assert len(client.resets) >= len(streams) - http2.QUEUED // 56000 - 2
        assert set(client.resets.values()) == {7}  # REFUSED_STREAM: they may be asked elsewhere
    procs.wait_until(lambda: site.closed("slow") == before + 1, 3, "the end of the connection")


def test_requests_that_are_reset_over_and_over_end_the_connection(site: Site) -> None:
    before = site.closed("flood")
    with Client(site) as client:
        for _ in range(20):
            for _ in range(50):
                client.h2.reset_stream(client.get(query("a.slow.test")), 8)
            try:
                client.flush()
            except OSError:
                break
        client.until_closed()
    assert site.closed("flood") == before + 1
    with Client(site) as client:
        client.wait(client.get(query()))


@pytest.mark.parametrize("kind", [b"\x06", b"\x02", b"\x04", b"\xee"])
def test_frames_that_ask_for_nothing_end_the_connection(site: Site, kind: bytes) -> None:
    """PING, PRIORITY, SETTINGS, and a type that nobody knows."""
    before = site.closed("flood")
    size, stream = {b"\x06": (8, 0), b"\x02": (5, 1), b"\x04": (0, 0), b"\xee": (0, 0)}[kind]
    frame = struct.pack("!BHcBL", 0, size, kind, 0, stream) + (b"\0\0\0\3\1" + bytes(3))[:size]
    with Client(site) as client:
        client.flush()
        with contextlib.suppress(OSError):
            client.sock.sendall(frame * (http2.CREDIT + 100))
        client.until_closed()
    assert site.closed("flood") == before + 1


@pytest.mark.parametrize("size", [200, 16000])
def test_heads_without_an_end_are_bounded(site: Site, size: int) -> None:
    """HEADERS, and CONTINUATION without END_HEADERS."""
    before = site.closed("http") + site.closed("flood")
    with Client(site) as client:
        client.flush()
        data = b"\x00\x01a" + b"\x7f" + b"\x00" + bytes(size)
        frames = struct.pack("!BHBBL", 0, len(data), 1, 0, 1) + data
        frames += (struct.pack("!BHBBL", 0, len(data), 9, 0, 1) + data) * 200
        with contextlib.suppress(OSError):
            client.sock.sendall(frames)
        client.until_closed()
    assert site.closed("http") + site.closed("flood") == before + 1


def test_a_request_that_does_not_become_complete_ends_the_connection(site: Site) -> None:
    before = site.closed("incomplete")
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(site))
        client.ask("POST", "/dns-query", query()[:5], finish=False)
        raw = stack.enter_context(connect(site.https, site.issued.client("http/1.1")))
        raw.sendall(b"POST /dns-query HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
        head = stack.enter_context(connect(site.https, site.issued.client()))
        head.sendall(b"GET /dns")
        begun = time.monotonic()
        client.until_closed()
        assert raw.recv(100) == head.recv(100) == b""
        assert 0.9 < time.monotonic() - begun < 4
    assert site.closed("incomplete") == before + 3


def test_what_is_no_http_is_closed_and_counted(site: Site) -> None:
    before = site.closed("http")
    for data in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff" + bytes(100), b"PRI x" + bytes(100)):
        with socket.create_connection(("127.0.0.1", site.http), 3) as sock:
            sock.sendall(data)
            with contextlib.suppress(OSError):
                while sock.recv(4096):
                    pass
    assert site.closed("http") == before + 2
    twice = b"POST /dns-query HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    for data in (twice, b"\x16\x03\x01" + bytes(100) + b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET /" + b"a" * 40000):
        with socket.create_connection(("127.0.0.1", site.http), 3) as sock:
            sock.sendall(data)
            found = sock.recv(4096)
            assert found.startswith(b"HTTP/1.1 4")
            assert b"connection: close" in found


def test_a_reload_says_goodbye_and_loses_no_request(site: Site) -> None:
    (worker,) = site.server.worker_pids()
    with Client(site) as client:
        client.wait(client.get(query()))
        site.server.write_corefile(plugins="# changed")
        site.server.signal(signal.SIGUSR1)
        while client.goodbye is None:
            client.read()
        assert client.goodbye.last_stream_id == 2**31 - 1
        assert client.goodbye.error_code == 0
        assert worker in site.server.worker_pids(), "it waits for requests that were on their way"
        client.until_closed()
    assert not site.server.metrics().value("coredns_panics_total")


# Without a server


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAMES = st.builds(
    lambda kind, flags, stream, data: struct.pack("!BHBBL", 0, len(data), kind, flags, stream) + data,
    st.integers(0, 12),
    st.integers(0, 255),
    st.integers(0, 9),
    st.binary(max_size=60),
)


def _talk(session: Http1 | Http2, data: bytes, cuts: list[int]) -> list[tuple[int, int]]:
    """Give a session bytes in pieces, and answer all; what it asks for. Nothing but BrokenError may be raised."""
    found = []
    cuts = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    with contextlib.suppress(BrokenError):
        for start, end in itertools.pairwise(cuts):
            requests = session.receive(data[start:end], 1.0)
            while requests:
                for request in requests:
                    found.append((request.stream, int(request.status)))
                    fields, body = doh.refused(request.status, doh.Clock())
                    session.answer(request.stream, request.status, fields, body)
                requests = session.receive(b"", 1.0)
            session.take()
            assert session.held < (1 << 20)
    session.take()
    session.leave()
    session.take()
    return found


class Pair:
    """A session and its client, without a network."""

    def __init__(self, **initial: int) -> None:
        self.session = Http2()
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        values = {SettingCodes[name.upper()]: value for name, value in initial.items()}
        self.client.local_settings = Settings(client=True, initial_values=values)
        self.client.initiate_connection()
        self.client.receive_data(self.session.take())

    def ask(self) -> int:
        stream = self.client.get_next_available_stream_id()
        head = [(":method", "GET"), (":path", target(query())), (":scheme", "https"), (":authority", "dns.test")]
        self.client.send_headers(stream, head, end_stream=True)
        return stream

    def hand_over(self) -> list[int]:
        """Give the session what the client has said; the streams of its requests."""
        return [request.stream for request in self.session.receive(self.client.data_to_send(), 1.0)]

    def answer(self, stream: int, body: bytes, number: int = 0) -> None:
        self.session.answer(stream, HTTPStatus.OK, [(b"date", b"%d" % number)], body)


@pytest.mark.one_speed
def test_a_request_that_is_taken_back_at_once_is_no_mistake_when_too_much_waits() -> None:
    pair = Pair(initial_window_size=0)
    first = pair.ask()
    assert pair.hand_over() == [first]
    pair.answer(first, bytes(http2.QUEUED + 1))
    second = pair.ask()
    pair.client.reset_stream(second)
    assert pair.hand_over() == [second]
    assert pair.session.reject(second)


@pytest.mark.one_speed
def test_fields_that_are_remembered_for_a_client_are_bounded_whatever_it_offers() -> None:
    pair = Pair()
    pair.client.update_settings({SettingCodes.HEADER_TABLE_SIZE: 1 << 24})
    pair.hand_over()
    pair.client.receive_data(pair.session.take())
    for number in range(300):
        stream = pair.ask()
        assert pair.hand_over() == [stream]
        pair.answer(stream, b"", number)
        pair.client.receive_data(pair.session.take())
    assert 0 < len(pair.client.decoder.header_table.dynamic_entries) <= 4096 // 32


@pytest.mark.one_speed
def test_many_words_about_windows_are_one_look_at_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(initial_window_size=0)
    streams = [pair.ask() for _ in range(90)]
    assert pair.hand_over() == streams
    for stream in streams:
        pair.answer(stream, b"abc")
    looks = Mock(side_effect=H2Connection.local_flow_control_window, autospec=True)
    monkeypatch.setattr(H2Connection, "local_flow_control_window", lambda *arguments: looks(*arguments))
    for _ in range(200):
        pair.client.increment_flow_control_window(1)
    assert pair.hand_over() == []
    assert looks.call_count <= len(streams)
    pair.client.increment_flow_control_window(3, streams[5])
    pair.hand_over()
    ended = [each for each in pair.client.receive_data(pair.session.take()) if isinstance(each, h2.events.StreamEnded)]
    assert [each.stream_id for each in ended] == [streams[5]]


def test_frames_without_requests_leave_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdns.server.https.TURN_SECONDS", 0.0)
    turns: list[int] = []
    turn = 0
    receive = Http2.receive

    def noted(session: Http2, data: bytes, now: float) -> object:
        turns.append(turn)
        return receive(session, data, now)

    monkeypatch.setattr(Http2, "receive", noted)

    async def talk(_: tcp.Connections, sock: socket.socket) -> None:
        nonlocal turn
        sock.sendall(PREFACE + (struct.pack("!BHBBL", 0, 4000, 0xEE, 0, 0) + bytes(4000)) * 12)
        while len(turns) < 12 and turn < 10_000:
            turn += 1
            await asyncio.sleep(0)

    asyncio.run(_with_a_connection(talk))
    assert len(turns) >= 12
    assert len(set(turns)) > len(turns) // 3


def _requests(count: int) -> bytes:
    """So many of a new connection."""
    pair = Pair()
    for _ in range(count):
        pair.ask()
    return pair.client.data_to_send()


def _turns_of_ninety(ask: Callable[[socket.socket, contextlib.ExitStack], None]) -> list[int]:
    """In which turn of the event loop each of 90 requests is answered."""
    turns: list[int] = []
    turn = 0

    async def chain(_: message.Query) -> message.Response:
        turns.append(turn)
        return message.Response()

    async def talk(_: tcp.Connections, sock: socket.socket) -> None:
        nonlocal turn
        with contextlib.ExitStack() as stack:
            ask(sock, stack)
            while len(turns) < 90 and turn < 10_000:
                turn += 1
                await asyncio.sleep(0)

    asyncio.run(_with_a_connection(talk, chain))
    assert len(turns) == 90
    return turns


def test_requests_that_are_much_to_do_leave_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a path that is remembered, a request is 14 bytes, and all of these are read together."""
    monkeypatch.setattr("kdns.server.https.TURN_SECONDS", 0.0)

    def ask(sock: socket.socket, _: contextlib.ExitStack) -> None:
        sock.sendall(_requests(90))

    turns = _turns_of_ninety(ask)
    assert len(set(turns)) > 80


def test_many_connections_leave_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdns.server.https.TURN_SECONDS", 0.0)
    monkeypatch.setattr("kdns.server.tcp.TURNS", 0.0)

    def ask(sock: socket.socket, stack: contextlib.ExitStack) -> None:
        socks = [stack.enter_context(socket.create_connection(sock.getpeername())) for _ in range(9)]
        for one in socks:
            one.sendall(_requests(10))

    turns = _turns_of_ninety(ask)
    assert max(turns.count(one) for one in turns) <= 2


def test_what_comes_behind_the_end_of_requests_is_not_kept() -> None:
    """GOAWAY, while a request still waits."""

    async def talk(connections: tcp.Connections, sock: socket.socket) -> None:
        pair = Pair()
        pair.ask()
        pair.client.close_connection()
        sock.sendall(pair.client.data_to_send())
        (connection,) = await _until(lambda: list(connections.open.values()))
        await _until(lambda: connection.pending == 1)
        sock.setblocking(False)
        sent = 0
        for _ in range(10_000):
            with contextlib.suppress(BlockingIOError):
                sent += sock.send(bytes(65536))
            await asyncio.sleep(0)
            if sent > 40 << 20:
                break
        assert sent > 40 << 20
        assert connection.held < 200_000

    asyncio.run(_with_a_connection(talk))


async def _until(condition: Callable[[], Any]) -> Any:
    for _ in range(10_000):
        if found := condition():
            return found
        await asyncio.sleep(0)
    raise AssertionError("it does not come to that")


async def _with_a_connection(
    talk: Callable[[tcp.Connections, socket.socket], Awaitable[None]], chain: Next | None = None
) -> None:
    """Let somebody talk to a server for plain HTTP. chain: answers; by default when that has come to its end."""
    answered = asyncio.Event()

    async def at_last(_: message.Query) -> message.Response:
        await in_task()
        await answered.wait()
        return message.Response()

    changes, region = Changes.create(), Region.create()
    connections = tcp.Connections(region)
    block = Block(QueryCounters(region, "https://:443", "."), chain or at_last, None, None)
    responder = Responder("https://:443", {b"\0": block}, region, pytest.fail, Waiting())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = tcp.TcpServer(listening, responder, changes, connections, Budget(), kind=HttpConnection, label="a")
        server.start()
        with socket.create_connection(listening.getsockname()) as sock:
            await talk(connections, sock)
        answered.set()
        await asyncio.sleep(0)
        await server.stop()
        await connections.drain(0)


@pytest.mark.one_speed
@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(FRAMES, st.binary(max_size=40)), max_size=12), st.lists(st.integers(0, 2000), max_size=4))
def test_whatever_frames_come_http_2_raises_nothing_else(frames: list[bytes], cuts: list[int]) -> None:
    _talk(Http2(), PREFACE + b"".join(frames), cuts)


HEADS = st.sampled_from([
    b"GET /dns-query?dns=AAAB HTTP/1.1\r\nHost: a\r\n\r\n", b"POST /dns-query HTTP/1.1\r\nHost: a\r\n",
    b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n", b"abc", b"5\r\nhello\r\n0\r\n\r\n", b"\0",
    b"Connection: close\r\n", b"HEAD * HTTP/1.0\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n", b"GET http://a/dns-query?dns=AA HTTP/1.1\r\nHost: a\r\n\r\n",
])  # fmt: skip


@pytest.mark.one_speed
@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(HEADS, st.binary(max_size=20)), max_size=8), st.lists(st.integers(0, 300), max_size=4))
def test_whatever_comes_http_1_raises_nothing_else(parts: list[bytes], cuts: list[int]) -> None:
    _talk(Http1(), b"".join(parts), cuts)


@pytest.mark.one_speed
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40), st.binary(max_size=60))
def test_any_target_has_a_status(path: bytes, parameters: bytes) -> None:
    for method in (b"GET", b"POST", path):
        found = doh.asked(1, method, b"/dns-query?" + parameters, path)
        assert found.status is HTTPStatus.OK or not found.query
        doh.asked(1, method, path, parameters)


@pytest.mark.one_speed
@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=12), st.integers(0, 3), st.binary(max_size=80))
def test_any_message_has_an_age(head: bytes, count: int, rest: bytes) -> None:
    data = head[:4].ljust(4, b"\0") + struct.pack("!4H", 0, count, count, 0) + rest
    assert 0 <= doh.max_age(data) <= doh.LONGEST_AGE


def _message(text: str) -> bytes:
    return dns.message.from_text(f"id 1\nopcode QUERY\n{text}").to_wire()


@pytest.mark.one_speed
@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("rcode NOERROR\n;ANSWER\na. 30 IN A 1.2.3.4\na. 7 IN A 1.2.3.5\n;ADDITIONAL\nb. 9 IN A 1.1.1.1", 7),
        ("rcode NOERROR\n;ANSWER\na. 99999 IN A 1.2.3.4", 3600),
        ("rcode NOERROR\nedns 0\n;ANSWER\na. 30 IN A 1.2.3.4", 30),
        ("rcode NXDOMAIN\n;AUTHORITY\na. 20 IN SOA a. b. 1 2 3 4 5", 20),
        ("rcode NOERROR\n;AUTHORITY\na. 20 IN SOA a. b. 1 2 3 4 5", 20),
        ("rcode NXDOMAIN\n;ANSWER\na. 30 IN CNAME b.\n;AUTHORITY\na. 20 IN SOA a. b. 1 2 3 4 5", 5),
        ("rcode NOERROR\n;AUTHORITY\na. 20 IN NS b.", 5),
        ("rcode NOERROR\nedns 0\n;QUESTION\na. IN A", 5),
        ("rcode SERVFAIL\n;ANSWER\na. 30 IN A 1.2.3.4", 5),
    ],
)
def test_the_age_of_a_response_is_that_of_coredns(text: str, age: int) -> None:
    assert doh.max_age(_message(text)) == age
    assert message.QUESTION_AT == 12
