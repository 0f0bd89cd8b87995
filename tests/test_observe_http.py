"""HTTP for /metrics, /health and /ready: what clients get, hostile ones included, and what a reload keeps."""

from __future__ import annotations

import gzip
import http.client
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.message import Message

import pytest

from kdns.errors import KdnsError
from kdns.observe import http as observed
from kdns.observe.counters import HEALTH_REQUESTS, Region, Totals
from kdns.observe.http import (
    MAX_CONNECTIONS,
    Endpoint,
    HealthProbe,
    HttpServer,
    Readiness,
    Reply,
    health_page,
    metrics_page,
    plain,
)
from kdns.observe.metrics import Exposition, SupervisorState

pytestmark = pytest.mark.one_speed

LOCAL = "127.0.0.1"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def server(said: list[str]) -> Iterator[HttpServer]:
    server = HttpServer(said.append)
    yield server
    server.close()


def failing(headers: Message) -> Reply:
    raise RuntimeError("broken page")


def start(server: HttpServer, *endpoints: Endpoint) -> tuple[str, int]:
    server.serve(server.bind(endpoints))
    return server.address(endpoints[0].host, endpoints[0].port)


@pytest.fixture
def address(server: HttpServer) -> tuple[str, int]:
    totals = Totals()
    return start(
        server,
        Endpoint(LOCAL, 0, "/health", health_page, "health"),
        Endpoint(
            LOCAL,
            0,
            "/metrics",
            metrics_page(lambda: Exposition(totals, lambda: SupervisorState("0.1.0"))),
            "prometheus",
        ),
        Endpoint(LOCAL, 0, "/fails", failing, "test"),
    )


def ask(
    address: tuple[str, int], path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(*address, timeout=5)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def raw(address: tuple[str, int], data: bytes) -> bytes:
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(data)
        answer = b""
        while part := client.recv(65536):
            answer += part
        return answer


def test_health_is_ok(address: tuple[str, int]) -> None:
    status, headers, body = ask(address, "/health")
    assert (status, body) == (200, b"OK")
    assert headers["Content-Length"] == "2"
    assert headers["Server"] == "kdns"


def test_one_address_carries_several_paths(address: tuple[str, int]) -> None:
    status, headers, body = ask(address, "/metrics?x=1")
    assert status == 200
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"coredns_build_info{" in body


def test_metrics_follow_the_accept_headers(address: tuple[str, int]) -> None:
    wanted = {"Accept": "application/openmetrics-text; version=1.0.0", "Accept-Encoding": "gzip"}
    _, headers, body = ask(address, "/metrics", headers=wanted)
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body).endswith(b"# EOF\n")


def test_head_has_the_headers_without_the_body(address: tuple[str, int]) -> None:
    status, headers, body = ask(address, "/health", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "2", b"")


@pytest.mark.parametrize("path", ["/", "/health/", "/ready", "//[", "/%68ealth"])
def test_other_paths_are_not_found(address: tuple[str, int], path: str) -> None:
    assert ask(address, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_not_allowed(address: tuple[str, int], method: str) -> None:
    status, headers, _ = ask(address, "/health", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_a_page_that_fails_is_reported_and_the_next_request_is_answered(
    address: tuple[str, int], said: list[str]
) -> None:
    status, _, body = ask(address, "/fails")
    assert status == 500
    assert b"broken" not in body
    assert said == ["'/fails' failed: RuntimeError('broken page')"]
    assert ask(address, "/health")[0] == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /health HTTP/9.9\r\n\r\n", b"505"),
        (b"BREW /health HTTP/1.1\r\n\r\n", b"501"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n", b"431"),
        (b"GET /health HTTP/1.1\r\nA: " + b"b" * 20000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n", b"431"),
    ],
)
def test_requests_that_are_wrong_or_too_large_are_refused(
    address: tuple[str, int], said: list[str], request_bytes: bytes, status: bytes
) -> None:
    answer = raw(address, request_bytes)
    assert status in answer.partition(b"\n")[0]
    assert ask(address, "/health")[0] == 200
    assert said == []


def test_one_connection_has_one_request(address: tuple[str, int]) -> None:
    answer = raw(address, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"Connection: close" in answer


@pytest.mark.parametrize("piece", [b"", b"A"])
def test_a_client_that_sends_slowly_or_nothing_is_cut(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch, piece: bytes
) -> None:
    monkeypatch.setattr(observed, "REQUEST_SECONDS", 0.5)
    begin = time.monotonic()
    with socket.create_connection(address, timeout=0.1) as client:
        client.sendall(b"GET /health HTTP/1.1\r\n")
        while time.monotonic() < begin + 8:
            try:
                client.sendall(piece)
                if client.recv(100) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    assert 0.4 < time.monotonic() - begin < 3


def test_a_client_that_does_not_read_is_cut(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observed, "REQUEST_SECONDS", 0.5)
    big = plain(200, "x" * 50_000_000)
    address = start(server, Endpoint(LOCAL, 0, "/big", lambda headers: big, "test"))
    with socket.create_connection(address) as client:
        client.sendall(b"GET /big HTTP/1.1\r\n\r\n")
        time.sleep(0.1)
        assert len(server._open) == 1
        end = time.monotonic() + 5
        while server._open and time.monotonic() < end:
            time.sleep(0.01)
        assert not server._open


def test_a_probe_gets_in_however_many_connections_others_hold(address: tuple[str, int], server: HttpServer) -> None:
    held = [socket.create_connection(address) for _ in range(MAX_CONNECTIONS * 3)]
    try:
        for _ in range(5):
            begin = time.monotonic()
            assert ask(address, "/health")[0] == 200
            assert time.monotonic() - begin < 2
        assert len(server._open) <= MAX_CONNECTIONS
        assert threading.active_count() < MAX_CONNECTIONS * 2 + 10
    finally:
        for client in held:
            client.close()


@pytest.mark.parametrize("client", ["127.0.0.1", "::1"])
def test_no_host_means_all_addresses_of_both_families(server: HttpServer, client: str) -> None:
    address = start(server, Endpoint("", 0, "/health", health_page, "health"))
    assert address[0] == "127.0.0.1"
    assert ask((client, address[1]), "/health")[0] == 200


def test_an_ipv6_address_is_served(server: HttpServer) -> None:
    assert ask(start(server, Endpoint("::1", 0, "/health", health_page, "health")), "/health")[0] == 200


def test_an_address_in_use_names_address_and_directive_and_leaves_all_as_it_was(
    server: HttpServer, address: tuple[str, int]
) -> None:
    with socket.create_server((LOCAL, 0)) as other:
        port = other.getsockname()[1]
        free = socket.create_server((LOCAL, 0))
        unused = free.getsockname()[1]
        free.close()
        with pytest.raises(
            KdnsError, match=rf"prometheus: cannot listen on 127\.0\.0\.1:{port}: Address already in use"
        ):
            server.bind(
                [
                    Endpoint(LOCAL, unused, "/health", health_page, "health"),
                    Endpoint(LOCAL, port, "/metrics", health_page, "prometheus"),
                ]
            )
    assert ask(address, "/health")[0] == 200
    socket.create_server((LOCAL, unused)).close()


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("192.0.2.1", 9153, r"health: cannot listen on 192\.0\.2\.1:9153: "),
        ("2001:db8::1", 9153, r"health: cannot listen on \[2001:db8::1\]:9153: "),
        ("", 99999, r"health: cannot listen on :99999: "),
        ("a..b", 1, r"health: cannot listen on a\.\.b:1: "),
    ],
)
def test_an_address_that_cannot_be_bound_is_an_error(server: HttpServer, host: str, port: int, message: str) -> None:
    with pytest.raises(KdnsError, match=message):
        server.bind([Endpoint(host, port, "/health", health_page, "health")])


def test_a_reload_keeps_the_sockets_that_stay_and_closes_the_others(server: HttpServer) -> None:
    stays = Endpoint(LOCAL, 0, "/health", health_page, "health")
    goes = Endpoint("127.0.0.2", 0, "/ready", health_page, "ready")
    at = start(server, stays, goes)
    gone = server.address("127.0.0.2", 0)
    failures = 0
    stop = threading.Event()

    def keep_asking() -> None:
        nonlocal failures
        while not stop.is_set():
            try:
                failures += ask(at, "/health")[0] != 200
            except OSError:
                failures += 1

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        for n in range(20):
            new = Endpoint("127.0.0.3", 0, f"/{n}", health_page, "ready")
            server.serve(server.bind([stays, new]))
            assert ask(server.address("127.0.0.3", 0), f"/{n}")[0] == 200
            server.serve(server.bind([stays]))
    finally:
        stop.set()
        asking.join()
    assert failures == 0
    assert server.address(LOCAL, 0) == at
    with pytest.raises(ConnectionRefusedError):
        ask(gone, "/ready")
    assert ask(at, "/ready")[0] == 404


def test_a_binding_that_is_abandoned_leaves_what_is_served(server: HttpServer, address: tuple[str, int]) -> None:
    binding = server.bind(
        [
            Endpoint(LOCAL, 0, "/health", failing, "health"),
            Endpoint("127.0.0.2", 0, "/ready", health_page, "ready"),
        ]
    )
    new = binding.sites["127.0.0.2", 0].listener.getsockname()
    binding.abandon()
    assert ask(address, "/health")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        ask(new, "/ready")


def test_close_ends_every_thread_and_frees_the_address(said: list[str]) -> None:
    before = threading.active_count()
    server = HttpServer(said.append)
    address = start(server, Endpoint(LOCAL, 0, "/health", health_page, "health"))
    with socket.create_connection(address) as idle:
        assert ask(address, "/health")[0] == 200
        begin = time.monotonic()
        server.close(0.1)
        assert time.monotonic() - begin < 2
        assert idle.recv(100) == b""
    with pytest.raises(ConnectionRefusedError):
        ask(address, "/health")
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before


def ready(names: dict[str, Callable[[], bool]], continuously: bool = False) -> Readiness:
    return Readiness(names, lambda text: None, continuously=continuously)


def answer(page: Readiness) -> tuple[int, bytes]:
    reply = page(Message())
    return reply.status, reply.body


def test_ready_names_what_is_not_ready() -> None:
    said: list[str] = []
    page = Readiness({"kubernetes": lambda: False, "file": lambda: True, "auto": lambda: False}, said.append)
    assert answer(page) == (503, b"auto,kubernetes")
    assert said == ['Plugins not ready: "auto,kubernetes"']


def test_ready_with_nothing_to_wait_for_is_ok() -> None:
    assert answer(ready({})) == (200, b"OK")


@pytest.mark.parametrize(("continuously", "later"), [(False, (200, b"OK")), (True, (503, b"kubernetes"))])
def test_what_was_ready_once_is_watched_only_when_asked_for(continuously: bool, later: tuple[int, bytes]) -> None:
    state = [False, True, False]
    page = ready({"kubernetes": lambda: state.pop(0)}, continuously)
    assert answer(page) == (503, b"kubernetes")
    assert answer(page) == (200, b"OK")
    assert answer(page) == later


def test_a_check_that_fails_is_not_ready() -> None:
    def check() -> bool:
        raise OSError("store is gone")

    assert answer(ready({"kubernetes": check})) == (503, b"kubernetes")


def test_ready_says_that_it_shuts_down() -> None:
    page = ready({})
    page.stop()
    assert answer(page) == (503, b"Shutting down")


def probe(address: tuple[str, int], seconds: float = 1.0) -> tuple[HealthProbe, Region, list[str], list[str]]:
    region = Region.create()
    failed: list[str] = []
    warned: list[str] = []
    return (
        HealthProbe(
            address, HEALTH_REQUESTS.histogram(region), lambda: failed.append("x"), warned.append, seconds=seconds
        ),
        region,
        failed,
        warned,
    )


def test_the_probe_measures_requests_to_health(address: tuple[str, int]) -> None:
    running, region, failed, warned = probe(address, 0.02)
    running.start()
    end = time.monotonic() + 10
    while sum(region.read()["histogram", HEALTH_REQUESTS.name][:6]) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    running.close()
    *counts, total = region.read()["histogram", HEALTH_REQUESTS.name]
    assert sum(counts) >= 3
    assert total > 0
    assert failed == warned == []


def test_a_probe_that_fails_is_counted_and_said() -> None:
    with socket.create_server((LOCAL, 0)) as gone:
        address = gone.getsockname()
    running, region, failed, warned = probe(address)
    running.probe()
    assert failed == ["x"]
    assert warned[0].startswith(f"Local health request to http://127.0.0.1:{address[1]}/health failed: ")
    assert sum(region.read()["histogram", HEALTH_REQUESTS.name][:6]) == 1


def test_a_probe_that_is_slow_is_said(server: HttpServer) -> None:
    def slow(headers: Message) -> Reply:
        time.sleep(1.1)
        return health_page(headers)

    running, region, failed, warned = probe(start(server, Endpoint(LOCAL, 0, "/health", slow, "health")))
    running.probe()
    assert "more than 1 s" in warned[0]
    assert failed == []
    assert region.read()["histogram", HEALTH_REQUESTS.name][4] == 1


def test_ready_has_notes_behind_its_ok() -> None:
    notes: list[str] = []
    page = Readiness({"kubernetes": lambda: True}, lambda text: None, notes=lambda: notes)
    assert page(Message()).body == b"OK"
    notes.append("kubernetes cluster.local.: data of 12 s ago")
    assert page(Message()).status == 200
    assert page(Message()).body == b"OK\nkubernetes cluster.local.: data of 12 s ago"


def test_a_reload_without_a_free_descriptor_does_not_end_the_server(
    server: HttpServer, address: tuple[str, int]
) -> None:
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    endpoint = Endpoint(LOCAL, 0, "/health", health_page, "health")
    with socket.socket() as client:
        client.settimeout(0.3)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, usual[1]))
        try:
            server.serve(server.bind([endpoint]))
            client.connect(address)
            client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            with pytest.raises(TimeoutError):
                client.recv(1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, usual)
        client.settimeout(5)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
    assert ask(address, "/health")[0] == 200
