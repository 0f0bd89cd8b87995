"""The way to an API server: configuration, authentication, limits, and bodies that end well or badly."""

from __future__ import annotations

import base64
import contextlib
import datetime
import email.utils
import json
import logging
import os
import shlex
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

import kdns
from kdns.cluster import connection as way
from kdns.cluster.connection import Access, Answer, Connection
from kdns.errors import ApiError
from tests.support.ports import free_port, has_ipv6

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
SOON = 1.0
"""Seconds that "at once" may take on a busy machine."""


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@dataclass
class Request:
    """What a client asked, and its connection. number: of the connection, from 0."""

    path: str
    headers: dict[str, str]
    number: int
    sock: socket.socket
    client: Mapping[str, Any] | None

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.sock.sendall(piece)

    def gone(self) -> bool:
        """Wait until the client has closed its end; False if it does not."""
        self.sock.settimeout(5 * SOON)
        try:
            return self.sock.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True


@dataclass
class Api:
    """A server for HTTP/1.1, with TLS if there is a context to make; `respond` does what it likes with a connection.

    After `respond` the connection closes, unless that has sent a whole answer, with a length or chunks, and returned
    True.
    """

    respond: Callable[[Request], bool | None]
    context: Callable[[], ssl.SSLContext] | None = None
    host: str = "127.0.0.1"
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    def __enter__(self) -> Api:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.create_server((self.host, 0), family=family)
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"{'https' if self.context else 'http'}://{self.name}"

    @property
    def name(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                number, self.connections = self.connections, self.connections + 1
                threading.Thread(target=self._serve, args=(sock, number), daemon=True).start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        self._open.add(sock)
        with contextlib.suppress(OSError, ValueError, IndexError), contextlib.ExitStack() as stack:
            stack.enter_context(sock)
            client = None
            if self.context is not None:
                sock = stack.enter_context(self.context().wrap_socket(sock, server_side=True))
                client = sock.getpeercert()
            file = stack.enter_context(sock.makefile("rb"))
            while line := file.readline():
                path, headers = line.split()[1].decode(), {}
                while (text := file.readline().decode().strip()) != "":
                    name, _, value = text.partition(":")
                    headers[name.lower()] = value.strip()
                request = Request(path, headers, number, sock, client)
                self.requests.append(request)
                if not self.respond(request):
                    break


def fine(request: Request) -> bool:
    request.send(OK)
    return True


class Seen:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str, float]] = []
        self.waits: list[tuple[str, str, float]] = []

    def request(self, verb: str, host: str, code: str, seconds: float) -> None:
        self.requests.append((verb, host, code, seconds))

    def throttled(self, verb: str, host: str, seconds: float) -> None:
        self.waits.append((verb, host, seconds))


class Connections:
    """Connections that close with the test."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.seen = Seen()

    def __call__(self, connect_seconds: float = 5.0, login_seconds: float = 30.0, **access: Any) -> Connection:
        connection = Connection(
            Access(**{"qps": 1000.0, "burst": 1000, **access}),
            self.seen,
            connect_seconds=connect_seconds,
            login_seconds=login_seconds,
        )
        self.stack.callback(connection.close)
        return connection


@pytest.fixture
def connect() -> Iterator[Connections]:
    with contextlib.ExitStack() as stack:
        yield Connections(stack)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)


def get(connection: Connection, path: str = "/x", silence: float = 10.0) -> Answer:
    return connection.get(path, {}, silence=silence)


def ask(connection: Connection, path: str = "/x", **query: str) -> bytes:
    return connection.get(path, query, silence=10.0).read(1 << 20)


def failure(action: Callable[[], object]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        action()
    return caught.value


def in_thread(action: Callable[[], object]) -> Callable[[], tuple[ApiError, float]]:
    """Start something that is to fail; what is returned waits for its error, and says how many seconds that took."""
    found: list[ApiError] = []
    thread = threading.Thread(target=lambda: found.append(failure(action)), daemon=True)
    thread.start()

    def wait() -> tuple[ApiError, float]:
        start = time.monotonic()
        thread.join(10 * SOON)
        assert found, "still waiting"
        return found[0], time.monotonic() - start

    return wait


class Certificates:
    """An authority, what it has issued, and files of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.ca_file = self.write("ca.crt", self.ca.cert_pem.bytes())
        self.server = self.ca.issue_cert("127.0.0.1")

    def write(self, name: str, data: bytes) -> str:
        (self.folder / name).write_bytes(data)
        return str(self.folder / name)

    def client(self, name: str) -> tuple[str, str]:
        """Files of a client's certificate and key."""
        issued = self.ca.issue_cert(f"{name}@example.com", common_name=name)
        return (
            self.write(f"{name}.crt", issued.cert_chain_pems[0].bytes()),
            self.write(f"{name}.key", issued.private_key_pem.bytes()),
        )

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.configure_cert(context)
        return context

    def mutual(self) -> ssl.SSLContext:
        """One that requires a certificate of the client."""
        context = self.context()
        self.ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        return context


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def common_name(request: Request) -> str:
    assert request.client is not None
    names = [value for part in request.client["subject"] for name, value in part if name == "commonName"]
    return str(names[0])


# Requests


def test_a_request_says_who_asks_and_for_what(connect: Connections) -> None:
    with Api(fine) as api:
        body = ask(connect(endpoint=api.url), "/api/v1/services", labelSelector="a=b,c in (d)", limit="500")
    assert body == b"{}"
    request = api.requests[0]
    assert request.path == "/api/v1/services?labelSelector=a%3Db%2Cc%20in%20%28d%29&limit=500"
    assert request.headers["user-agent"] == f"kdns/{kdns.__version__}"
    assert request.headers["accept"] == "application/json"
    assert request.headers["accept-encoding"] == "identity"
    assert "authorization" not in request.headers


def test_a_path_in_the_endpoint_stands_before_that_of_the_request(connect: Connections) -> None:
    with Api(fine) as api:
        ask(connect(endpoint=f"{api.url}/clusters/a/"), "/api")
    assert api.requests[0].path == "/clusters/a/api"


@pytest.mark.parametrize("status", [200, 302, 401, 410, 429, 500])
def test_any_status_is_an_answer(connect: Connections, status: int) -> None:
    def respond(request: Request) -> bool:
        request.send(b"HTTP/1.1 %d Status\r\nLocation: /elsewhere\r\nContent-Length: 2\r\n\r\n{}" % status)
        return True

    with Api(respond) as api:
        answer = get(connect(endpoint=api.url))
        assert (answer.status, answer.read(2)) == (status, b"{}")
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("7", 7, 7),
        ("in 100 seconds", 60, 101),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0, 0),
        ("soon", None, None),
        ("-3", None, None),
        ("", None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(
    connect: Connections, value: str, low: float | None, high: float | None
) -> None:
    if value == "in 100 seconds":
        value = email.utils.formatdate(time.time() + 100, usegmt=True)

    def respond(request: Request) -> None:
        request.send(b"HTTP/1.1 429 Slow\r\nRetry-After: %s\r\nContent-Length: 0\r\n\r\n" % value.encode())

    with Api(respond) as api:
        found = get(connect(endpoint=api.url)).retry_after
    if low is None or high is None:
        assert found is None
    else:
        assert found is not None
        assert low <= found <= high


def test_retry_after_is_none_where_the_server_says_nothing(connect: Connections) -> None:
    with Api(fine) as api:
        assert get(connect(endpoint=api.url)).retry_after is None


def test_a_connection_is_used_again_after_bodies_of_every_kind(connect: Connections) -> None:
    def respond(request: Request) -> bool:
        request.send(*{"/chunks": [CHUNKED, chunk(b"ab"), chunk(b"c"), LAST], "/length": [OK]}[request.path])
        return True

    with Api(respond) as api:
        connection = connect(endpoint=api.url)
        assert [ask(connection, path) for path in ("/chunks", "/length", "/chunks", "/length")] == [b"abc", b"{}"] * 2
        assert api.connections == 1


def test_an_idle_connection_that_the_server_has_closed_is_replaced(connect: Connections) -> None:
    with Api(lambda request: request.send(OK)) as api:
        connection = connect(endpoint=api.url)
        for _ in range(3):
            assert ask(connection) == b"{}"
            time.sleep(0.05)
    assert api.connections == 3


def test_tcp_keepalive_is_on(connect: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    connect_to = socket.socket.connect

    def spy(sock: socket.socket, address: Any) -> None:
        connect_to(sock, address)
        found.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    monkeypatch.setattr(socket.socket, "connect", spy)
    with Api(fine) as api:
        ask(connect(endpoint=api.url))
    assert found == [1]


def test_threads_share_a_connection(connect: Connections) -> None:
    with Api(fine) as api:
        connection = connect(endpoint=api.url)
        found: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: found.extend(ask(connection) for _ in range(20)), daemon=True)
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert found == [b"{}"] * 160
    assert api.connections <= 8


def test_the_observer_hears_of_every_request(connect: Connections) -> None:
    def respond(request: Request) -> bool:
        if request.path == "/missing":
            request.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        elif request.path == "/late":
            time.sleep(0.2)
            request.send(OK)
        return request.path != "/broken"

    with Api(respond) as api:
        connection = connect(endpoint=api.url)
        ask(connection, "/missing")
        ask(connection, "/late")
        failure(lambda: get(connection, "/broken"))
    assert [found[:3] for found in connect.seen.requests] == [
        ("GET", api.name, "404"),
        ("GET", api.name, "200"),
        ("GET", api.name, "<error>"),
    ]
    assert connect.seen.requests[1][3] >= 0.2
    assert [found[:2] for found in connect.seen.waits] == [("GET", api.name)] * 3


# Limits


def test_requests_over_the_burst_wait_for_the_rate(connect: Connections) -> None:
    with Api(fine) as api:
        connection = connect(endpoint=api.url, qps=20.0, burst=2)
        start = time.monotonic()
        for _ in range(6):
            ask(connection)
        assert 0.19 <= time.monotonic() - start < 0.19 + SOON
    waits = [seconds for _, _, seconds in connect.seen.waits]
    assert len(waits) == 6
    assert sum(waits[:2]) < 0.04 <= sum(waits[2:])


def test_the_default_is_5_requests_a_second_and_10_at_once(connect: Connections) -> None:
    with Api(fine) as api:
        connection = connect(endpoint=api.url, qps=0.0, burst=0)
        for _ in range(11):
            ask(connection)
    waits = [seconds for _, _, seconds in connect.seen.waits]
    assert max(waits[:10]) < 0.1 <= waits[10] < 0.2 + SOON


def test_max_inflight_bounds_requests_without_headers_and_not_open_watches(connect: Connections) -> None:
    held, free = threading.Semaphore(0), threading.Semaphore(0)

    def respond(request: Request) -> None:
        held.release()
        free.acquire(timeout=10)
        request.send(CHUNKED, chunk(b"a"))
        request.gone()

    with Api(respond) as api:
        connection = connect(endpoint=api.url, max_inflight=2)
        answers: list[Answer] = []
        threads = [threading.Thread(target=lambda: answers.append(get(connection)), daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert held.acquire(timeout=SOON)
        assert held.acquire(timeout=SOON)
        assert not held.acquire(timeout=0.2)
        free.release()
        assert held.acquire(timeout=SOON)
        free.release(2)
        for thread in threads:
            thread.join(10)
        assert [next(answer.stream()) for answer in answers] == [b"a"] * 3


def test_a_request_that_fails_makes_room_for_the_next(connect: Connections) -> None:
    with Api(lambda _: None) as api:
        connection = connect(endpoint=api.url, max_inflight=1)
        for _ in range(3):
            assert failure(lambda: get(connection)).reason == "connection"


# Bodies


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("kind", ["chunks", "length", "close"])
def test_bytes_are_there_as_soon_as_the_server_has_sent_them(
    connect: Connections, certificates: Certificates, kind: str, tls: bool
) -> None:
    seen = threading.Semaphore(0)
    events = [b'{"type":"ADDED"}\n', b"x" * 3000, b"y"]

    def respond(request: Request) -> None:
        length = b"Content-Length: %d\r\n" % len(b"".join(events)) if kind == "length" else b""
        request.send(CHUNKED if kind == "chunks" else b"HTTP/1.1 200 OK\r\n" + length + b"\r\n")
        for event in events:
            request.send(chunk(event) if kind == "chunks" else event)
            assert seen.acquire(timeout=5)
        request.send(LAST if kind == "chunks" else b"")

    with Api(respond, certificates.context if tls else None) as api:
        pieces = []
        for piece in get(connect(endpoint=api.url, ca=certificates.ca_file)).stream():
            pieces.append(piece)
            seen.release()
    assert pieces == events


def test_chunks_may_be_of_any_size_and_come_in_any_pieces(connect: Connections) -> None:
    bodies = [b"a" * size for size in (1, 2, 8191, 8192, 65535, 65536, 65537, 300_000)]
    wire = CHUNKED + b"".join(map(chunk, bodies)) + LAST

    def respond(request: Request) -> None:
        for start in range(0, len(wire), 7919):
            request.send(wire[start : start + 7919])

    with Api(respond) as api:
        assert ask(connect(endpoint=api.url)) == b"".join(bodies)


def test_an_empty_body_has_no_pieces(connect: Connections) -> None:
    def respond(request: Request) -> bool:
        request.send(CHUNKED + LAST if request.path == "/chunks" else OK.replace(b"2\r\n\r\n{}", b"0\r\n\r\n"))
        return True

    with Api(respond) as api:
        connection = connect(endpoint=api.url)
        assert list(get(connection, "/chunks").stream()) == []
        assert list(get(connection, "/length").stream()) == []


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(
    "cut",
    [
        CHUNKED,
        CHUNKED + chunk(b"abc"),
        CHUNKED + b"3\r\nab",
        CHUNKED + b"3\r\nabc",
        CHUNKED + chunk(b"abc") + b"1",
        CHUNKED + chunk(b"abc") + b"zz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
    ],
)
def test_a_body_that_is_cut_short_is_an_error(
    connect: Connections, certificates: Certificates, cut: bytes, tls: bool
) -> None:
    with Api(lambda request: request.send(cut), certificates.context if tls else None) as api:
        connection = connect(endpoint=api.url, ca=certificates.ca_file)
        error = failure(lambda: ask(connection, "/api"))
    assert error.reason == "connection"
    assert str(error).startswith(f"{api.name}: the answer to GET /api ended before it was complete: ")


def test_a_connection_that_is_reset_is_an_error(connect: Connections) -> None:
    def respond(request: Request) -> None:
        request.send(CHUNKED, chunk(b"abc"))
        time.sleep(0.1)
        request.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with Api(respond) as api:
        error = failure(lambda: ask(connect(endpoint=api.url)))
    assert error.reason == "connection"


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("kind", ["headers", "chunks", "length", "close"])
def test_silence_is_an_error(connect: Connections, certificates: Certificates, kind: str, tls: bool) -> None:
    def respond(request: Request) -> None:
        plain = b"HTTP/1.1 200 OK\r\n%s\r\nabc"
        request.send(
            {
                "headers": b"",
                "chunks": CHUNKED + chunk(b"abc"),
                "length": plain % b"Content-Length: 10\r\n",
                "close": plain % b"",
            }[kind]
        )
        request.gone()

    with Api(respond, certificates.context if tls else None) as api:
        connection = connect(endpoint=api.url, ca=certificates.ca_file)
        start = time.monotonic()
        error = failure(lambda: get(connection, silence=0.3).read(100))
    assert error.reason == "silent"
    assert 0.3 <= time.monotonic() - start < 0.3 + SOON
    assert api.name in str(error)


def test_bytes_that_come_slowly_are_no_silence(connect: Connections) -> None:
    def respond(request: Request) -> None:
        request.send(CHUNKED)
        for _ in range(5):
            time.sleep(0.15)
            request.send(chunk(b"a"))
        request.send(LAST)

    with Api(respond) as api:
        assert get(connect(endpoint=api.url), silence=0.5).read(100) == b"aaaaa"


@pytest.mark.parametrize("limit", [1, 65536, 199_999])
def test_a_body_over_the_limit_is_not_read(connect: Connections, limit: int) -> None:
    gone = threading.Event()

    def respond(request: Request) -> None:
        with contextlib.suppress(ConnectionError):
            request.send(CHUNKED, chunk(b"a" * 100_000), chunk(b"a" * 100_000))
        if request.gone():
            gone.set()

    with Api(respond) as api:
        error = failure(lambda: get(connect(endpoint=api.url)).read(limit))
        assert gone.wait(SOON)
    assert error.reason == "too_large"
    assert str(limit) in str(error)


def test_a_body_of_the_limit_is_read(connect: Connections) -> None:
    with Api(fine) as api:
        assert get(connect(endpoint=api.url)).read(2) == b"{}"


# Closing


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("kind", ["chunks", "length", "close"])
def test_closing_an_answer_ends_a_read_that_waits(
    connect: Connections, certificates: Certificates, kind: str, tls: bool
) -> None:
    gone = threading.Event()

    def respond(request: Request) -> None:
        plain = b"HTTP/1.1 200 OK\r\n%s\r\nabc"
        request.send(
            {
                "chunks": CHUNKED + chunk(b"abc"),
                "length": plain % b"Content-Length: 10\r\n",
                "close": plain % b"",
            }[kind]
        )
        if request.gone():
            gone.set()

    with Api(respond, certificates.context if tls else None) as api:
        answer = get(connect(endpoint=api.url, ca=certificates.ca_file), silence=60)
        stream = answer.stream()
        assert next(stream) == b"abc"
        wait = in_thread(lambda: next(stream))
        time.sleep(0.1)
        answer.close()
        error, seconds = wait()
        assert (error.reason, seconds < SOON) == ("closed", True)
        assert gone.wait(SOON)


@pytest.mark.parametrize("tls", [False, True])
def test_an_answer_that_is_closed_yields_nothing_more(
    connect: Connections, certificates: Certificates, tls: bool
) -> None:
    gone = threading.Event()

    def respond(request: Request) -> None:
        request.send(CHUNKED, chunk(b"abc"), chunk(b"def"))
        if request.gone():
            gone.set()

    with Api(respond, certificates.context if tls else None) as api:
        answer = get(connect(endpoint=api.url, ca=certificates.ca_file))
        stream = answer.stream()
        assert next(stream) == b"abc"
        answer.close()
        assert failure(lambda: next(stream)).reason == "closed"
        assert failure(lambda: answer.read(10)).reason == "closed"
        assert gone.wait(SOON)
        answer.close()


def test_closing_while_bytes_rush_in_shows_none_that_were_not_sent(
    connect: Connections, certificates: Certificates
) -> None:
    event = chunk(b"abcdefgh" * 50) * 20

    def respond(request: Request) -> None:
        request.send(CHUNKED)
        with contextlib.suppress(OSError):
            while True:
                request.send(event)

    with Api(respond, certificates.context) as api:
        connection = connect(endpoint=api.url, ca=certificates.ca_file)
        for _ in range(20):
            answer = get(connection)
            timer = threading.Timer(0.01, answer.close)
            timer.start()
            pieces: list[bytes] = []
            error = failure(lambda into=pieces, of=answer: into.extend(of.stream()))  # type: ignore[misc]
            assert error.reason == "closed"
            assert set(pieces) <= {b"abcdefgh" * 50}
            timer.join()


def waiting_for_bytes(connect: Connections, api: Api) -> tuple[Connection, Callable[[], object]]:
    connection = connect(endpoint=api.url)
    answer = get(connection, "/open")
    return connection, lambda: answer.read(100)


def waiting_for_headers(connect: Connections, api: Api) -> tuple[Connection, Callable[[], object]]:
    connection = connect(endpoint=api.url)
    return connection, lambda: get(connection, "/silent", silence=60)


def waiting_for_the_rate(connect: Connections, api: Api) -> tuple[Connection, Callable[[], object]]:
    connection = connect(endpoint=api.url, qps=0.01, burst=1)
    ask(connection)
    return connection, lambda: get(connection)


def waiting_for_others(connect: Connections, api: Api) -> tuple[Connection, Callable[[], object]]:
    connection = connect(endpoint=api.url, max_inflight=1)
    in_thread(lambda: get(connection, "/silent", silence=60))
    time.sleep(0.1)
    return connection, lambda: get(connection)


def waiting_for_a_handshake(connect: Connections, api: Api) -> tuple[Connection, Callable[[], object]]:
    listener = connect.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    connection = connect(endpoint=f"https://127.0.0.1:{listener.getsockname()[1]}", connect_seconds=60)
    return connection, lambda: get(connection, silence=60)


@pytest.mark.parametrize(
    "waiting",
    [waiting_for_bytes, waiting_for_headers, waiting_for_the_rate, waiting_for_others, waiting_for_a_handshake],
)
def test_closing_the_connection_ends_whatever_waits(
    connect: Connections, waiting: Callable[[Connections, Api], tuple[Connection, Callable[[], object]]]
) -> None:
    def respond(request: Request) -> bool:
        if request.path == "/x":
            return fine(request)
        request.send(CHUNKED if request.path == "/open" else b"")
        request.gone()
        return False

    with Api(respond) as api:
        connection, action = waiting(connect, api)
        wait = in_thread(action)
        time.sleep(0.2)
        connection.close()
        error, seconds = wait()
        assert (error.reason, seconds < SOON) == ("closed", True)
        assert failure(lambda: get(connection)).reason == "closed"
        assert failure(connection.identity).reason == "closed"
        connection.close()


def test_closing_the_connection_closes_idle_sockets(connect: Connections) -> None:
    gone = threading.Event()

    def respond(request: Request) -> None:
        request.send(OK)
        if request.gone():
            gone.set()

    with Api(respond) as api:
        connection = connect(endpoint=api.url)
        ask(connection)
        assert not gone.wait(0.1)
        connection.close()
        assert gone.wait(SOON)


def test_an_answer_that_comes_after_the_connection_was_closed_is_let_go(connect: Connections) -> None:
    closed, gone = threading.Event(), threading.Event()

    def respond(request: Request) -> None:
        closed.wait(5)
        request.send(CHUNKED, chunk(b"a"))
        if request.gone():
            gone.set()

    with Api(respond) as api:
        connection = connect(endpoint=api.url)
        wait = in_thread(lambda: get(connection))
        time.sleep(0.1)
        connection.close()
        assert wait()[0].reason == "closed"
        closed.set()
        assert gone.wait(SOON)


# No connection


def test_a_refused_connection_names_the_server(connect: Connections) -> None:
    port = free_port()
    error = failure(lambda: get(connect(endpoint=f"http://127.0.0.1:{port}")))
    assert (error.reason, str(error)) == ("connection", f"127.0.0.1:{port}: Connection refused")


def test_a_connection_that_does_not_come_ends(connect: Connections) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        for _ in range(3):  # from here on the kernel drops what asks for a connection
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        error = failure(lambda: get(connect(endpoint=url, connect_seconds=0.3)))
    assert (error.reason, str(error)) == ("connection", f"{url[7:]}: no connection within 0.3 s")


def test_a_handshake_that_does_not_end_is_no_connection(connect: Connections) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        name = f"127.0.0.1:{listener.getsockname()[1]}"
        error = failure(lambda: get(connect(endpoint=f"https://{name}", connect_seconds=0.3)))
    assert (error.reason, str(error)) == ("connection", f"{name}: no TLS handshake within 0.3 s")


def test_a_name_that_does_not_resolve_is_no_connection(connect: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    error = failure(lambda: get(connect(endpoint="https://api.example.com:6443")))
    assert (error.reason, str(error)) == ("connection", "api.example.com:6443: Name or service not known")


def test_a_resolver_that_hangs_hangs_nobody(connect: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*_: object, **__: object) -> None:
        release.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    connection = connect(endpoint="http://api.example.com", connect_seconds=0.2)
    assert failure(lambda: get(connection, silence=0.2)).reason == "silent"
    release.set()


def test_what_is_not_http_is_no_connection(connect: Connections) -> None:
    with Api(lambda request: request.send(b"SSH-2.0-OpenSSH_9.9\r\n")) as api:
        assert failure(lambda: get(connect(endpoint=api.url))).reason == "connection"


# TLS


def test_tls_with_the_servers_authority(connect: Connections, certificates: Certificates) -> None:
    with Api(fine, certificates.context) as api:
        connection = connect(endpoint=api.url, ca=certificates.ca_file)
        assert [ask(connection), ask(connection)] == [b"{}", b"{}"]
        assert api.connections == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [("authority", "unable to get local issuer"), ("expired", "expired"), ("name", "not valid for '127.0.0.1'")],
)
def test_a_certificate_that_does_not_hold_is_a_tls_error(
    connect: Connections, certificates: Certificates, fault: str, words: str
) -> None:
    past = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
    certificates.server = {
        "authority": lambda: trustme.CA().issue_cert("127.0.0.1"),
        "expired": lambda: certificates.ca.issue_cert("127.0.0.1", not_before=past, not_after=past),
        "name": lambda: certificates.ca.issue_cert("127.0.0.2"),
    }[fault]()
    with Api(fine, certificates.context) as api:
        error = failure(lambda: get(connect(endpoint=api.url, ca=certificates.ca_file)))
    assert error.reason == "tls"
    for part in (api.name, words, "for 127.0.0.1", "valid now", certificates.ca_file):
        assert part in str(error)


def test_without_an_authority_those_of_the_system_count(connect: Connections, certificates: Certificates) -> None:
    with Api(fine, certificates.context) as api:
        error = failure(lambda: get(connect(endpoint=api.url)))
    assert error.reason == "tls"
    assert "that this system trusts" in str(error)


def test_a_server_without_tls_is_a_tls_error(connect: Connections, certificates: Certificates) -> None:
    def refuse(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock, contextlib.suppress(OSError):
            sock.recv(65536)
            sock.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            sock.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=refuse, args=(listener,), daemon=True).start()
        name = f"127.0.0.1:{listener.getsockname()[1]}"
        error = failure(lambda: get(connect(endpoint=f"https://{name}", ca=certificates.ca_file)))
    assert error.reason == "tls"
    assert str(error).startswith(f"{name}: TLS: ")


def test_a_client_certificate_is_shown_to_the_server(connect: Connections, certificates: Certificates) -> None:
    cert, key = certificates.client("kdns")
    with Api(fine, certificates.mutual) as api:
        ask(connect(endpoint=api.url, ca=certificates.ca_file, cert=cert, key=key))
        assert common_name(api.requests[0]) == "kdns"
        error = failure(lambda: get(connect(endpoint=api.url, ca=certificates.ca_file)))
    assert error.reason == "tls"


def test_a_server_certificate_of_a_new_authority_is_trusted_once_the_file_has_it(
    connect: Connections, certificates: Certificates
) -> None:
    with Api(lambda request: request.send(OK), certificates.context) as api:
        connection = connect(endpoint=api.url, ca=certificates.ca_file)
        ask(connection)
        other = trustme.CA()
        certificates.server = other.issue_cert("127.0.0.1")
        assert failure(lambda: get(connection)).reason == "tls"
        certificates.write("ca.crt", other.cert_pem.bytes())
        assert ask(connection) == b"{}"


def test_a_client_certificate_that_changes_is_used_by_the_next_connection(
    connect: Connections, certificates: Certificates
) -> None:
    cert, key = certificates.client("before")
    with Api(lambda request: request.send(OK), certificates.mutual) as api:
        connection = connect(endpoint=api.url, ca=certificates.ca_file, cert=cert, key=key)
        ask(connection)
        for old, new in zip((cert, key), certificates.client("after"), strict=True):
            Path(new).replace(old)
        ask(connection)
    assert [common_name(request) for request in api.requests] == ["before", "after"]


def test_a_certificate_that_has_gone_is_named(connect: Connections, certificates: Certificates) -> None:
    with Api(lambda request: request.send(OK), certificates.context) as api:
        connection = connect(endpoint=api.url, ca=certificates.ca_file)
        ask(connection)
        Path(certificates.ca_file).unlink()
        error = failure(lambda: get(connection))
    assert error.reason == "configuration"
    assert api.url in str(error)


def test_renewing_takes_new_connections(connect: Connections) -> None:
    gone = threading.Event()

    def respond(request: Request) -> bool:
        request.send(OK)
        if len(api.requests) != 2:
            return True
        if request.gone():
            gone.set()
        return False

    with Api(respond) as api:
        connection = connect(endpoint=api.url)
        ask(connection)
        ask(connection)
        connection.renew()
        assert gone.wait(SOON)
        ask(connection)
        assert api.connections == 2


# Configuration: endpoint


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"ca": "missing"}, "authorities {folder}/missing: No such file or directory"),
        ({"ca": "junk"}, "authorities {folder}/junk: "),
        ({"cert": "good.crt", "key": "missing"}, "key {folder}/missing: No such file or directory"),
        (
            {"cert": "good.crt", "key": "other.key"},
            "client certificate {folder}/good.crt with key {folder}/other.key: ",
        ),
        ({"cert": "good.crt"}, "client certificate {folder}/good.crt"),
        ({"cert": "junk", "key": "junk"}, "client certificate {folder}/junk"),
    ],
)
def test_files_of_certificates_that_cannot_be_used_are_named(
    connect: Connections, certificates: Certificates, tmp_path: Path, names: dict[str, str], words: str
) -> None:
    certificates.client("good")
    certificates.client("other")
    certificates.write("junk", b"junk")
    files: dict[str, Any] = {option: str(tmp_path / name) for option, name in names.items()}
    error = failure(lambda: get(connect(endpoint="https://127.0.0.1:1", **files)))
    assert error.reason == "configuration"
    assert words.format(folder=tmp_path) in str(error)
    assert "endpoint https://127.0.0.1:1" in str(error)
    assert "; accepted: " in str(error)


# Configuration: the cluster that we run in


@dataclass
class Pod:
    """A service account, and the environment of a pod."""

    folder: Path
    certificates: Certificates
    monkeypatch: pytest.MonkeyPatch

    def __post_init__(self) -> None:
        self.token_file = self.folder / "token"
        self.token_file.write_text("first")

    def enter(self, api: Api) -> dict[str, Any]:
        self.monkeypatch.setenv("KUBERNETES_SERVICE_HOST", api.host)
        self.monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
        return self.files

    @property
    def files(self) -> dict[str, Any]:
        return {"token_file": str(self.token_file), "ca_file": self.certificates.ca_file}


@pytest.fixture
def pod(tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> Pod:
    return Pod(tmp_path, certificates, monkeypatch)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_pod_uses_its_environment_and_service_account(connect: Connections, pod: Pod, host: str) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("no IPv6")
    pod.certificates.server = pod.certificates.ca.issue_cert(host)
    with Api(fine, pod.certificates.context, host=host) as api:
        assert ask(connect(**pod.enter(api))) == b"{}"
    assert api.requests[0].headers["authorization"].lower() == "bearer first"
    assert connect.seen.requests[0][1] == api.name


def test_a_token_that_rotates_is_read_again_after_a_minute_or_when_told(
    connect: Connections, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert way._TOKEN_SECONDS == 60
    with Api(fine, pod.certificates.context) as api:
        connection = connect(**pod.enter(api))
        ask(connection)
        pod.token_file.write_text("second\n")
        ask(connection)
        monkeypatch.setattr(way, "_TOKEN_SECONDS", 0.3)
        connection.renew()
        ask(connection)
        pod.token_file.write_text("third")
        time.sleep(0.4)
        ask(connection)
    sent = [request.headers["authorization"].lower() for request in api.requests]
    assert sent == ["bearer first", "bearer first", "bearer second", "bearer third"]


def test_outside_of_a_cluster_is_said_so(connect: Connections, pod: Pod) -> None:
    error = failure(lambda: get(connect(**pod.files)))
    assert error.reason == "configuration"
    for part in ("KUBERNETES_SERVICE_HOST", "kubeconfig FILE", "endpoint URL"):
        assert part in str(error)


@pytest.mark.parametrize("name", ["token", "ca.crt"])
@pytest.mark.parametrize("content", [None, ""])
def test_a_service_account_that_is_not_complete_is_said_so(
    connect: Connections, pod: Pod, tmp_path: Path, name: str, content: str | None
) -> None:
    with Api(fine) as api:
        files = pod.enter(api)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    error = failure(lambda: get(connect(**files)))
    assert error.reason == "configuration"
    assert str(tmp_path / name) in str(error) if content is None else "empty" in str(error)


# Configuration: kubeconfig


@dataclass
class Kubeconfig:
    """A kubeconfig with one cluster; each user has a context of the same name."""

    path: Path
    cluster: dict[str, Any]
    users: dict[str, dict[str, Any]]
    current: str = "main"

    def write(self) -> str:
        contexts = [{"name": name, "context": {"cluster": "c", "user": name}} for name in self.users]
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": self.cluster}],
            "users": [{"name": name, "user": user} for name, user in self.users.items()],
            "contexts": contexts,
            "current-context": self.current,
        }
        self.path.write_text(yaml.safe_dump(content))
        return str(self.path)


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Kubeconfig:
    return Kubeconfig(tmp_path / "config", {"server": "https://127.0.0.1:1"}, {"main": {"token": "secret"}})


def encoded(path: str) -> str:
    return base64.b64encode(Path(path).read_bytes()).decode()


def test_a_kubeconfig_has_tokens_for_its_contexts(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("from-file\n")
    kubeconfig.users["other"] = {"tokenFile": "token"}
    kubeconfig.users["basic"] = {"username": "me", "password": "pw"}
    with Api(fine, certificates.context) as api:
        kubeconfig.cluster = {"server": api.url, "certificate-authority-data": encoded(certificates.ca_file)}
        file = kubeconfig.write()
        for context in ("", "main", "other", "basic"):
            ask(connect(kubeconfig=file, context=context))
    sent = [request.headers["authorization"] for request in api.requests]
    basic = base64.b64encode(b"me:pw").decode()
    assert sent == ["Bearer secret", "Bearer secret", "Bearer from-file", f"Basic {basic}"]


@pytest.mark.parametrize("inline", [False, True])
def test_a_kubeconfig_has_client_certificates(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig, inline: bool
) -> None:
    cert, key = certificates.client("kdns")
    kubeconfig.users["main"] = (
        {"client-certificate-data": encoded(cert), "client-key-data": encoded(key)}
        if inline
        else {"client-certificate": "kdns.crt", "client-key": "kdns.key"}
    )
    with Api(fine, certificates.mutual) as api:
        kubeconfig.cluster = {"server": api.url, "certificate-authority": "ca.crt"}
        ask(connect(kubeconfig=kubeconfig.write()))
    assert common_name(api.requests[0]) == "kdns"


def test_a_kubeconfig_may_name_the_tls_server(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig
) -> None:
    certificates.server = certificates.ca.issue_cert("kubernetes.default")
    with Api(fine, certificates.context) as api:
        kubeconfig.cluster = {
            "server": api.url,
            "certificate-authority": certificates.ca_file,
            "tls-server-name": "kubernetes.default",
        }
        ask(connect(kubeconfig=kubeconfig.write()))
        kubeconfig.cluster["tls-server-name"] = "kubernetes"
        error = failure(lambda: get(connect(kubeconfig=kubeconfig.write())))
    assert error.reason == "tls"
    assert "for kubernetes," in str(error)


def test_a_kubeconfig_may_leave_out_verification(
    connect: Connections,
    certificates: Certificates,
    kubeconfig: Kubeconfig,
    recwarn: pytest.WarningsRecorder,
) -> None:
    certificates.server = trustme.CA().issue_cert("elsewhere.example.com")
    with Api(fine, certificates.context) as api:
        kubeconfig.cluster = {"server": api.url, "insecure-skip-tls-verify": True}
        assert ask(connect(kubeconfig=kubeconfig.write())) == b"{}"
    assert not recwarn.list


@pytest.mark.parametrize(
    ("content", "context", "words"),
    [
        (None, "", "No such file or directory"),
        ("", "", "empty"),
        ("a: [", "", "config"),
        ("just text", "", ""),
        ("{}", "", "current-context"),
        ("current-context: a\ncontexts: [{name: a, context: {cluster: b}}]\n", "", "clusters"),
        (
            "current-context: a\ncontexts: [{name: a, context: {cluster: b}}]\nclusters: [{name: b, cluster: {}}]\n",
            "",
            "the server's URL is ''",
        ),
        ("current-context: a\ncontexts: [{name: a}, {name: b}]\n", "c", "it has: a, b"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_is_named(
    connect: Connections, tmp_path: Path, content: str | None, context: str, words: str
) -> None:
    file = tmp_path / "config"
    if content is not None:
        file.write_text(content)
    error = failure(lambda: get(connect(kubeconfig=str(file), context=context)))
    assert error.reason == "configuration"
    assert str(file) in str(error)
    assert words in str(error)
    assert "; accepted: " in str(error)
    assert "\n" not in str(error)


def test_an_authority_that_is_missing_is_named(connect: Connections, kubeconfig: Kubeconfig, tmp_path: Path) -> None:
    kubeconfig.cluster["certificate-authority"] = "missing.crt"
    error = failure(lambda: get(connect(kubeconfig=kubeconfig.write())))
    assert error.reason == "configuration"
    assert str(tmp_path / "missing.crt") in str(error)


def test_no_message_has_a_secret(connect: Connections, kubeconfig: Kubeconfig) -> None:
    config = {"client-id": "i", "client-secret": "hidden", "refresh-token": "hidden"}
    kubeconfig.users["main"] = {"auth-provider": {"name": "oidc", "config": config}}
    error = failure(lambda: get(connect(kubeconfig=kubeconfig.write())))
    assert "id-token" in str(error)
    assert "hidden" not in str(error)


INNER = ("xy\nzzy", "xy\r\nzzy", "xy\0zzy", "xy\tzzy", "xy\x7fzzy", "xy\u00e9zzy", "xy\u20aczzy")
"""Tokens that no header can have."""


@pytest.fixture(params=["token", "tokenFile", "plugin", "pod"])
def give_token(
    request: pytest.FixtureRequest,
    certificates: Certificates,
    kubeconfig: Kubeconfig,
    plugin: Plugin,
    pod: Pod,
    tmp_path: Path,
) -> Callable[[Api, str], dict[str, Any]]:
    """Put a token where it is read from; returns the arguments of Access."""

    def give(api: Api, token: str) -> dict[str, Any]:
        kubeconfig.cluster = {"server": api.url, "certificate-authority": certificates.ca_file}
        if request.param == "pod":
            pod.token_file.write_text(token, newline="")
            return pod.enter(api)
        if request.param == "plugin":
            kubeconfig.users["main"] = plugin(credential(token).replace("<<END", "<<'END'"))
        elif request.param == "token":
            kubeconfig.users["main"] = {"token": token}
        else:
            (tmp_path / "given").write_text(token, newline="")
            kubeconfig.users["main"] = {"tokenFile": "given"}
        return {"kubeconfig": kubeconfig.write()}

    return give


def test_a_token_may_have_space_around_it(
    connect: Connections, certificates: Certificates, give_token: Callable[[Api, str], dict[str, Any]]
) -> None:
    with Api(fine, certificates.context) as api:
        ask(connect(**give_token(api, "\n token\r\n\n")))
    assert api.requests[0].headers["authorization"].split(" ")[1:] == ["token"]


def test_a_token_that_no_header_can_have_is_a_mistake_that_is_told_without_it(
    connect: Connections, certificates: Certificates, give_token: Callable[[Api, str], dict[str, Any]]
) -> None:
    with Api(fine, certificates.context) as api:
        for token in INNER:
            connection = connect(**give_token(api, token))
            error = failure(lambda of=connection: get(of))  # type: ignore[misc]
            assert error.reason == "configuration"
            assert str(error).endswith(
                ": its credentials have characters that no header can have; accepted: a token of one line"
            )
            assert "zzy" not in "".join(traceback.format_exception(error))
        assert not api.requests
        give_token(api, "good")
        assert ask(connection) == b"{}"
    assert api.requests[0].headers["authorization"].split(" ")[1:] == ["good"]


# Files of what a kubeconfig has inline


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def all_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def closing(request: Request) -> None:
    """Answer, and have the next request come with a connection, for which certificates are read, of its own."""
    request.send(OK)


def inline(kubeconfig: Kubeconfig, api: Api, certificates: Certificates, name: str = "kdns") -> str:
    """A kubeconfig with an authority, a client's certificate, and its key."""
    cert, key = certificates.client(name)
    kubeconfig.cluster = {"server": api.url, "certificate-authority-data": encoded(certificates.ca_file)}
    kubeconfig.users["main"] = {"client-certificate-data": encoded(cert), "client-key-data": encoded(key)}
    return kubeconfig.write()


def test_files_of_inline_certificates_are_for_nobody_else_and_stay_as_long_as_they_are_needed(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig, temporary: Path
) -> None:
    with Api(closing, certificates.mutual) as api:
        connection = connect(kubeconfig=inline(kubeconfig, api, certificates))
        for number in range(4):
            inline(kubeconfig, api, certificates, f"client-{number}")
            connection.renew()
            assert not all_files(temporary)
            for _ in range(2):
                ask(connection)
            assert len(all_files(temporary)) == 3
        assert {path.stat().st_mode & 0o777 for path in temporary.iterdir()} == {0o700}
        assert {path.stat().st_mode & 0o777 for path in all_files(temporary)} == {0o600}
        connection.close()
    assert not list(temporary.iterdir())
    assert [common_name(request) for request in api.requests[::2]] == [f"client-{number}" for number in range(4)]


def test_a_kubeconfig_with_nothing_inline_has_no_folder(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig, temporary: Path
) -> None:
    kubeconfig.cluster["certificate-authority"] = certificates.ca_file
    connect(kubeconfig=kubeconfig.write()).identity()
    assert not list(temporary.iterdir())


def test_connections_of_the_same_kubeconfig_have_files_of_their_own(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig, temporary: Path
) -> None:
    with Api(closing, certificates.mutual) as api:
        file = inline(kubeconfig, api, certificates)
        first, second, third = (connect(kubeconfig=file) for _ in range(3))
        for connection in (first, second, third):
            ask(connection)
        assert len(all_files(temporary)) == 9
        first.close()
        third.renew()
        for connection in (second, third, connect(kubeconfig=file)):
            ask(connection)
        third.close()
        ask(second)
    assert len(all_files(temporary)) == 6


def test_a_certificate_and_its_key_may_be_one_text(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig, temporary: Path
) -> None:
    with Api(closing, certificates.mutual) as api:
        inline(kubeconfig, api, certificates)
        both = base64.b64encode(b"".join(Path(path).read_bytes() for path in certificates.client("kdns"))).decode()
        kubeconfig.users["main"] = {"client-certificate-data": both, "client-key-data": both}
        connection = connect(kubeconfig=kubeconfig.write())
        ask(connection)
        connection.renew()
        ask(connection)
    assert len(all_files(temporary)) == 2


def test_threads_that_read_a_kubeconfig_at_once_do_not_take_files_from_each_other(
    connect: Connections,
    certificates: Certificates,
    kubeconfig: Kubeconfig,
    plugin: Plugin,
    tmp_path: Path,
    temporary: Path,
) -> None:
    go = tmp_path / "go"
    with Api(closing, certificates.mutual) as api:
        cert, key = (Path(path).read_text() for path in certificates.client("kdns"))
        inline(kubeconfig, api, certificates)
        # As long as a plugin hangs, others do not wait for whoever reads.
        wait = f"for i in $(seq 200); do test -e {shlex.quote(str(go))} && break; sleep 0.05; done"
        kubeconfig.users["main"] = plugin(wait, credential(clientCertificateData=cert, clientKeyData=key))
        file = kubeconfig.write()
        connections = [connect(kubeconfig=file) for _ in range(4)]
        found: list[bytes] = []

        def insist(connection: Connection) -> None:
            for _ in range(20):
                with contextlib.suppress(ApiError):
                    found.append(ask(connection))
                    return

        threads = [threading.Thread(target=insist, args=(each,), daemon=True) for each in connections]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        go.touch()
        for thread in threads:
            thread.join(10)
        assert found == [b"{}"] * 4
        connections.pop().close()
        for connection in connections:
            assert ask(connection) == b"{}"
    assert len(all_files(temporary)) == 9


def test_a_request_that_waits_keeps_the_files_that_it_needs(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig, temporary: Path
) -> None:
    with Api(closing, certificates.mutual) as api:
        connection = connect(kubeconfig=inline(kubeconfig, api, certificates, "old"), qps=2.0, burst=1)
        ask(connection)
        found: list[bytes] = []
        thread = threading.Thread(target=lambda: found.append(ask(connection)), daemon=True)
        thread.start()
        time.sleep(0.2)
        inline(kubeconfig, api, certificates, "new")
        connection.renew()
        thread.join(10)
        assert (found, all_files(temporary)) == ([b"{}"], [])
        ask(connection)
    assert [common_name(request) for request in api.requests] == ["old", "old", "new"]


@pytest.mark.parametrize("fault", ["key", "server", "moved"])
def test_a_kubeconfig_that_cannot_be_used_leaves_no_files(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig, temporary: Path, fault: str
) -> None:
    with Api(closing, certificates.mutual) as api:
        connection = connect(kubeconfig=inline(kubeconfig, api, certificates))
        if fault == "key":
            kubeconfig.users["main"]["client-key-data"] = encoded(certificates.client("other")[1])
        elif fault == "server":
            kubeconfig.cluster["server"] = "https://"
        else:
            ask(connection)
            connection.renew()
            kubeconfig.cluster["server"] = "https://127.0.0.1:1"
        kubeconfig.write()
        error = failure(lambda: get(connection))
    assert error.reason == "configuration"
    assert not list(temporary.iterdir())


def test_where_nothing_can_be_written_a_kubeconfig_may_have_files(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig, temporary: Path
) -> None:
    context = certificates.context()
    temporary.rmdir()
    with Api(fine, lambda: context) as api:
        error = failure(lambda: get(connect(kubeconfig=inline(kubeconfig, api, certificates))))
        assert (error.reason, str(kubeconfig.path) in str(error)) == ("configuration", True)
        kubeconfig.cluster = {"server": api.url, "certificate-authority": certificates.ca_file}
        kubeconfig.users["main"] = {"token": "secret"}
        assert ask(connect(kubeconfig=kubeconfig.write())) == b"{}"


def test_a_plugin_that_ends_after_the_connection_leaves_no_files(
    connect: Connections,
    certificates: Certificates,
    kubeconfig: Kubeconfig,
    plugin: Plugin,
    temporary: Path,
) -> None:
    with Api(fine, certificates.mutual) as api:
        inline(kubeconfig, api, certificates)
        cert, key = (Path(path).read_text() for path in certificates.client("kdns"))
        kubeconfig.users["main"] = plugin("sleep 0.5", credential(clientCertificateData=cert, clientKeyData=key))
        connection = connect(kubeconfig=kubeconfig.write())
        wait = in_thread(lambda: get(connection))
        time.sleep(0.2)
        connection.close()
        assert wait()[0].reason == "closed"
        assert list(temporary.iterdir())
        for _ in range(100):
            if not list(temporary.iterdir()):
                break
            time.sleep(0.05)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("lines", [(), ("sleep 3",)])
def test_a_process_that_ends_leaves_no_files(
    certificates: Certificates, kubeconfig: Kubeconfig, plugin: Plugin, temporary: Path, lines: tuple[str, ...]
) -> None:
    with Api(fine, certificates.mutual) as api:
        inline(kubeconfig, api, certificates)
        if lines:
            kubeconfig.users["main"] = plugin(*lines)
        code = f"""
import contextlib, os, tempfile
from kdns.cluster.connection import Access, Connection
from kdns.errors import ApiError
connection = Connection(Access(kubeconfig={kubeconfig.write()!r}), None, login_seconds={0.2 if lines else 30})
with contextlib.suppress(ApiError):
    connection.identity()
print(len(os.listdir(tempfile.gettempdir())))
"""
        environ = {**os.environ, "TMPDIR": str(temporary)}
        done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("1\n", "")
    assert not list(temporary.iterdir())


# Exec plugins


@dataclass
class Plugin:
    """A script that notes each run and then does what the test says."""

    path: Path

    def __call__(self, *lines: str) -> dict[str, Any]:
        """User of a kubeconfig whose plugin runs these lines of shell."""
        self.path.write_text("\n".join([f"echo run >> {shlex.quote(str(self.path))}.runs", *lines]))
        return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": [str(self.path)]}}

    @property
    def runs(self) -> int:
        runs = Path(f"{self.path}.runs")
        return len(runs.read_text().splitlines()) if runs.exists() else 0


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    return Plugin(tmp_path / "plugin.sh")


def credential(token: str = "", **others: str) -> str:
    """A line of shell that prints an ExecCredential; a shell variable may be in it."""
    status = {"token": token, **others} if token else others
    kind = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    return f"cat <<END\n{json.dumps(kind)}\nEND"


def in_seconds(seconds: float) -> str:
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


COUNT = 'number=$(wc -l < "$0.runs" | tr -d " ")'


def test_a_plugins_token_holds_until_it_expires(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig, plugin: Plugin
) -> None:
    with Api(fine, certificates.context) as api:
        kubeconfig.cluster = {"server": api.url, "certificate-authority": certificates.ca_file}
        kubeconfig.users["main"] = plugin(COUNT, credential("token-$number", expirationTimestamp=in_seconds(3600)))
        connection = connect(kubeconfig=kubeconfig.write())
        for _ in range(3):
            ask(connection)
        connection.renew()
        ask(connection)
    assert [request.headers["authorization"] for request in api.requests] == ["Bearer token-1"] * 3 + ["Bearer token-2"]
    assert plugin.runs == 2


def test_a_plugin_runs_again_when_its_token_is_about_to_expire(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig, plugin: Plugin
) -> None:
    with Api(fine, certificates.context) as api:
        kubeconfig.cluster = {"server": api.url, "certificate-authority": certificates.ca_file}
        kubeconfig.users["main"] = plugin(COUNT, credential("token-$number", expirationTimestamp=in_seconds(60)))
        connection = connect(kubeconfig=kubeconfig.write())
        ask(connection)
        ask(connection)
    assert api.requests[0].headers["authorization"] != api.requests[1].headers["authorization"]


def test_a_token_that_cannot_be_renewed_is_used_as_long_as_the_server_takes_it(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig, plugin: Plugin
) -> None:
    with Api(fine, certificates.context) as api:
        kubeconfig.cluster = {"server": api.url, "certificate-authority": certificates.ca_file}
        kubeconfig.users["main"] = plugin(
            COUNT, 'test "$number" = 1 || exit 3', credential("old", expirationTimestamp=in_seconds(60))
        )
        connection = connect(kubeconfig=kubeconfig.write())
        ask(connection)
        ask(connection)
        connection.renew()
        error = failure(lambda: get(connection))
    assert [request.headers["authorization"] for request in api.requests] == ["Bearer old"] * 2
    assert error.reason == "configuration"
    assert "process returned 3" in str(error)


def test_a_plugin_may_give_a_client_certificate(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig, plugin: Plugin
) -> None:
    with Api(fine, certificates.mutual) as api:
        kubeconfig.cluster = {"server": api.url, "certificate-authority": certificates.ca_file}
        for name in ("one", "two"):
            cert, key = (Path(path).read_text() for path in certificates.client(name))
            kubeconfig.users["main"] = plugin(credential(clientCertificateData=cert, clientKeyData=key))
            if name == "one":
                connection = connect(kubeconfig=kubeconfig.write())
            connection.renew()
            ask(connection)
    assert [common_name(request) for request in api.requests] == ["one", "two"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("echo no such account >&2", "exit 3"), "process returned 3. no such account"),
        (("echo hello",), "failed to decode process output"),
        (("echo {}",), "apiVersion"),
        ((credential(),), "missing token"),
        ((credential(clientCertificateData="x"),), "missing clientKeyData"),
        ((credential("t").replace("io/v1", "io/v1beta1"),), "v1beta1"),
        ((credential(clientCertificateData="x", clientKeyData="y"),), "client certificate"),
    ],
)
def test_a_plugin_that_fails_is_quoted(
    connect: Connections,
    kubeconfig: Kubeconfig,
    plugin: Plugin,
    capfd: pytest.CaptureFixture[str],
    lines: tuple[str, ...],
    words: str,
) -> None:
    kubeconfig.users["main"] = plugin(*lines)
    handlers = list(logging.getLogger().handlers)
    error = failure(lambda: get(connect(kubeconfig=kubeconfig.write())))
    assert error.reason == "configuration"
    assert words in str(error)
    assert str(kubeconfig.path) in str(error)
    assert "; accepted: " in str(error)
    assert "\n" not in str(error)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers


def test_a_plugin_that_is_not_there_is_named(connect: Connections, kubeconfig: Kubeconfig) -> None:
    kubeconfig.users["main"] = {"exec": {"apiVersion": "v1", "command": "no-such-plugin"}}
    error = failure(lambda: get(connect(kubeconfig=kubeconfig.write())))
    assert error.reason == "configuration"
    assert "No such file or directory: 'no-such-plugin'" in str(error)


def test_what_others_log_while_a_plugin_runs_goes_where_it_goes(
    connect: Connections, kubeconfig: Kubeconfig, plugin: Plugin, tmp_path: Path
) -> None:
    kubeconfig.users["main"] = plugin("sleep 0.5", "exit 3")
    code = f"""
import logging, threading, time
from kdns.cluster.connection import Access, Connection
thread = threading.Thread(target=lambda: (time.sleep(0.3), logging.getLogger("other").warning("from another")))
thread.start()
try:
    Connection(Access(kubeconfig={kubeconfig.write()!r}), None).identity()
except Exception as error:
    print(type(error).__name__)
thread.join()
print(logging.getLogger().handlers)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("ApiError\n[]\n", "from another\n")


def test_a_plugin_that_hangs_is_waited_for_once_and_not_for_ever(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig, plugin: Plugin, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    with Api(fine, certificates.context) as api:
        kubeconfig.cluster = {"server": api.url, "certificate-authority": certificates.ca_file}
        wait = f"for i in $(seq 200); do test -e {shlex.quote(str(go))} && break; sleep 0.05; done"
        kubeconfig.users["main"] = plugin(wait, credential("late"))
        connection = connect(kubeconfig=kubeconfig.write(), login_seconds=0.3)
        for _ in range(2):
            start = time.monotonic()
            error = failure(lambda: get(connection))
            assert 0.3 <= time.monotonic() - start < 0.3 + SOON
            assert error.reason == "configuration"
            assert "has not ended after 0.3 s" in str(error)
        assert plugin.runs == 1
        go.touch()
        for _ in range(50):
            with contextlib.suppress(ApiError):
                assert ask(connection) == b"{}"
                break
        assert api.requests[-1].headers["authorization"] == "Bearer late"


def test_closing_does_not_wait_for_a_plugin(
    connect: Connections, kubeconfig: Kubeconfig, plugin: Plugin, tmp_path: Path
) -> None:
    kubeconfig.users["main"] = plugin("exec sleep 3")
    connection = connect(kubeconfig=kubeconfig.write())
    wait = in_thread(lambda: get(connection))
    time.sleep(0.2)
    connection.close()
    error, seconds = wait()
    assert (error.reason, seconds < SOON) == ("closed", True)


# Identity


def test_a_cluster_is_its_url_and_its_authorities(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig
) -> None:
    data = encoded(certificates.ca_file)
    kubeconfig.cluster = {"server": "https://a.example.com", "certificate-authority-data": data}
    kubeconfig.users["other"] = {"token": "rotated"}
    cert, key = certificates.client("kdns")
    kubeconfig.users["third"] = {"client-certificate": cert, "client-key": key}
    file = kubeconfig.write()
    same = {connect(kubeconfig=file, context=context).identity() for context in ("", "other", "third")}
    same.add(connect(endpoint="https://a.example.com", ca=certificates.ca_file, cert=cert, key=key).identity())
    assert len(same) == 1
    others = {
        connect(endpoint="https://b.example.com", ca=certificates.ca_file).identity(),
        connect(endpoint="https://a.example.com").identity(),
        connect(endpoint="https://a.example.com", ca=certificates.write("o", trustme.CA().cert_pem.bytes())).identity(),
    }
    assert len(same | others) == 4


def is_elsewhere(error: ApiError) -> bool:
    return error.reason == "configuration" and str(error).endswith(
        ": the configuration leads to another API server, or one with another authority, than before"
    )


def test_a_configuration_that_is_read_again_may_change_all_but_the_cluster(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig
) -> None:
    with Api(fine, certificates.context) as api:
        kubeconfig.cluster = {"server": api.url, "certificate-authority": certificates.ca_file}
        connection = connect(kubeconfig=kubeconfig.write())
        identity = connection.identity()
        kubeconfig.users["main"] = {"token": "rotated"}
        kubeconfig.cluster = {"server": f"{api.url}/", "certificate-authority-data": encoded(certificates.ca_file)}
        kubeconfig.write()
        connection.renew()
        assert ask(connection) == b"{}"
        assert (connection.identity(), connection.moved) == (identity, False)
    assert api.requests[0].headers["authorization"] == "Bearer rotated"


@pytest.mark.parametrize("change", ["server", "authority"])
def test_a_configuration_that_leads_to_another_cluster_ends_a_connection(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig, change: str
) -> None:
    def respond(request: Request) -> None:
        request.send(CHUNKED, chunk(b"abc"))
        go.wait(5)
        request.send(chunk(b"def"), LAST)

    go = threading.Event()
    with Api(respond, certificates.context) as old, Api(fine, certificates.context) as new:
        kubeconfig.cluster = {"server": old.url, "certificate-authority": certificates.ca_file}
        connection = connect(kubeconfig=kubeconfig.write())
        watch = get(connection)
        before = dict(kubeconfig.cluster)
        if change == "server":
            kubeconfig.cluster["server"] = new.url
        else:
            both = Path(certificates.ca_file).read_bytes() + trustme.CA().cert_pem.bytes()
            kubeconfig.cluster["certificate-authority"] = certificates.write("both.crt", both)
        kubeconfig.write()
        connection.renew()
        assert not connection.moved
        assert is_elsewhere(failure(lambda: get(connection)))
        assert connection.moved
        assert is_elsewhere(failure(connection.identity))
        kubeconfig.cluster = before
        kubeconfig.write()
        connection.renew()
        assert is_elsewhere(failure(lambda: get(connection)))
        assert (len(old.requests), len(new.requests)) == (1, 0)
        go.set()
        assert watch.read(100) == b"abcdef"
        connection.close()
        assert failure(lambda: get(connection)).reason == "closed"


@pytest.mark.parametrize("limit", [{"qps": 0.1, "burst": 2}, {"max_inflight": 1}])
def test_what_waits_to_ask_asks_nothing_once_there_is_another_cluster(
    connect: Connections, certificates: Certificates, kubeconfig: Kubeconfig, limit: dict[str, Any]
) -> None:
    def respond(request: Request) -> bool:
        if request.path == "/silent":
            request.gone()
        return fine(request)

    with Api(respond, certificates.context) as api:
        kubeconfig.cluster = {"server": api.url, "certificate-authority": certificates.ca_file}
        connection = connect(kubeconfig=kubeconfig.write(), **limit)
        ask(connection)
        in_thread(lambda: get(connection, "/silent", silence=5))
        time.sleep(0.1)
        wait = in_thread(lambda: get(connection))
        time.sleep(0.1)
        kubeconfig.cluster["server"] = "https://127.0.0.1:1"
        kubeconfig.write()
        connection.renew()
        assert is_elsewhere(failure(lambda: get(connection)))
        error, seconds = wait()
        assert is_elsewhere(error)
        assert seconds < SOON
        assert [request.path for request in api.requests] == ["/x", "/silent"]
        connection.close()


# Proxies


def proxy(request: Request, target: Api) -> None:
    """Be a proxy of CONNECT for a connection."""
    with socket.create_connection((target.host, target.port)) as upstream:
        request.send(b"HTTP/1.1 200 Connection established\r\n\r\n")

        def copy(source: socket.socket, sink: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    sink.sendall(data)

        threading.Thread(target=copy, args=(upstream, request.sock), daemon=True).start()
        copy(request.sock, upstream)


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "all_proxy"])
def test_a_proxy_of_the_environment_is_used(
    connect: Connections, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    certificates.server = certificates.ca.issue_cert("127.0.0.1", "localhost")
    with Api(fine, certificates.context) as api, Api(lambda request: proxy(request, api)) as between:
        monkeypatch.setenv(variable, between.url)
        assert ask(connect(endpoint=api.url, ca=certificates.ca_file)) == b"{}"
        assert [request.path for request in between.requests] == [api.name]
        for rules in ("10.0.0.0/8,127.0.0.1", "::/0, 127.0.0.0/8", api.name, "*"):
            monkeypatch.setenv("NO_PROXY", rules)
            assert ask(connect(endpoint=api.url, ca=certificates.ca_file)) == b"{}"
            assert len(between.requests) == 1, rules
        monkeypatch.setenv("NO_PROXY", ".LocalHost,")
        by_name = api.url.replace("127.0.0.1", "localhost")
        assert ask(connect(endpoint=by_name, ca=certificates.ca_file)) == b"{}"
        assert len(between.requests) == 1
        for number, rules in enumerate(("127.0.0.2,10.0.0.0/8", "27.0.0.1", ",", "host"), 2):
            monkeypatch.setenv("NO_PROXY", rules)
            assert ask(connect(endpoint=api.url, ca=certificates.ca_file)) == b"{}"
            assert len(between.requests) == number, rules


def test_a_proxy_that_cannot_be_reached_is_named_without_its_password(
    connect: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:hidden@{name}")
    error = failure(lambda: get(connect(endpoint="https://api.example.com")))
    assert (error.reason, str(error)) == ("connection", f"api.example.com: proxy {name}: Connection refused")


# Imports


def test_nothing_is_loaded_before_it_is_needed() -> None:
    code = (
        "import sys, kdns.cluster.connection; print([n for n in ('kubernetes', 'urllib3', 'yaml') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("in_pod", [False, True])
def test_the_package_is_loaded_for_a_kubeconfig_only(pod: Pod, in_pod: bool) -> None:
    code = """
import json, sys
from unittest.mock import Mock
from kdns.cluster.connection import Access, Connection
connection = Connection(Access(**json.loads(sys.argv[1])), Mock())
connection.get("/", {}, silence=5).close()
print([name for name in ("kubernetes", "yaml", "pydantic") if name in sys.modules])
"""
    with Api(fine, pod.certificates.context) as api:
        files = pod.enter(api)
        access = files if in_pod else {"endpoint": api.url, "ca": pod.certificates.ca_file}
        command = [sys.executable, "-c", code, json.dumps(access)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
