"""Which addresses a configuration listens on, and what is lost there."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from kdns import plugins
from kdns.errors import KdnsError
from kdns.observe.counters import Region
from kdns.server import sockets
from kdns.server.plan import Place
from tests.conftest import Serve
from tests.support import ports, procs

LOST = ("count", "kdns_dropped_total", "reason", "queue")


def check(text: str) -> None:
    blocks = plugins.loads(text).blocks
    sockets.refuse_shared_ports(blocks, sockets.servers(blocks, {}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (".:8080 {\n health\n whoami\n}", "health :8080 and DNS :8080 overlap; accepted: another port"),
        (".:53 {\n bind 127.0.0.1\n ready :53\n whoami\n}", "ready :53 and DNS 127.0.0.1:53 overlap"),
        (".:53 {\n prometheus 127.0.0.1:53\n whoami\n}", "prometheus 127.0.0.1:53 and DNS :53 overlap"),
        (".:53 {\n health :9000\n ready 127.0.0.1:9000\n whoami\n}", "overlap; accepted: another port, or one address"),
    ],
)
def test_http_where_something_else_listens_is_refused(text: str, message: str) -> None:
    with pytest.raises(KdnsError) as caught:
        check(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        ".:53 {\n health :9000\n ready :9000\n prometheus :9000\n whoami\n}",
        ".:53 {\n bind 127.0.0.1\n health 127.0.0.2:53\n whoami\n}",
        "a.test:53 {\n health\n whoami\n}\nb.test:53 {\n health\n whoami\n}",
    ],
)
def test_http_beside_everything_else_is_fine(text: str) -> None:
    check(text)


def overfill(port: int, count: int, size: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            sender.sendto(bytes(size), ("127.0.0.1", port))


def test_what_finds_no_room_in_a_socket_is_counted_once() -> None:
    region = Region.create()
    losses = sockets.Losses(region)
    place = Place("udp", "127.0.0.1", ports.free_port())
    with sockets.listen(place) as sock:
        losses.look(sock)
        assert region.read()[LOST] == (0,)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        overfill(place.port, 100, 1000)
        losses.look(sock)
        (lost,) = region.read()[LOST]
        assert 50 < lost < 100
        losses.look(sock)
        assert region.read()[LOST] == (lost,)
        overfill(place.port, 10, 1000)
        losses.close(sock)
        assert sock.fileno() < 0
        assert region.read()[LOST] == (lost + 10,)
    losses.look(sock)
    with sockets.listen(place) as sock:  # it may have the same descriptor
        losses.look(sock)
    assert region.read()[LOST] == (lost + 10,)


def test_queries_that_the_kernel_drops_are_in_the_metrics(serve: Serve) -> None:
    server = serve([], addresses=["127.0.0.1"])
    assert server.metrics().samples["kdns_dropped_total", frozenset({("reason", "queue")})] == 0
    [worker] = server.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    try:
        overfill(server.port, 4000, 8000)
    finally:
        os.kill(worker, signal.SIGCONT)
    procs.wait_until(lambda: server.metrics().value("kdns_dropped_total", reason="queue") > 100, 5, "losses", 0.1)
    procs.wait_until(server.answers, 5, "answers")
