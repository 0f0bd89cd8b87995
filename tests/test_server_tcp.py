"""TCP connections that ask a great deal, ask nonsense, or are still asking when the configuration is exchanged."""

from __future__ import annotations

import contextlib
import signal
import struct
import threading
import time
from collections.abc import Callable

import dns.message
import pytest

from kdns.server import tcp
from tests.conftest import Serve
from tests.support import objects, procs
from tests.support.server import Server, read_message

CLUSTER = [objects.service("web", ips=["10.96.0.1"])]
WEB = "web.default.svc.cluster.local"


def framed(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data


def query(ident: int) -> bytes:
    return framed(dns.message.make_query(WEB, "A", id=ident).to_wire())


@pytest.mark.parametrize("half_closed", [False, True])
def test_many_turns_of_queries_in_one_burst_are_all_answered_in_order(serve: Serve, half_closed: bool) -> None:
    server = serve(CLUSTER)
    count = 7 * tcp.TURN + 1
    with server.tcp_socket() as sock:
        sock.sendall(b"".join(query(number) for number in range(count)) + (b"" if half_closed else b"\0"))
        if half_closed:
            sock.shutdown(1)
        idents = [(read_message(sock) or b"\xff\xff")[:2] for _ in range(count)]
        assert idents == [struct.pack("!H", number) for number in range(count)]
        if half_closed:
            assert sock.recv(1) == b""
        else:
            sock.sendall(query(1)[1:])  # completes the message whose length began with the zero byte
            assert (read_message(sock) or b"")[:2] == b"\0\1"


def test_a_client_that_sends_nothing_but_nonsense_is_closed_and_holds_up_nobody(serve: Serve) -> None:
    server = serve(CLUSTER)
    with server.tcp_socket() as sock:
        sock.sendall(bytes(2 * tcp.TURN))
        time.sleep(0.1)
        sock.sendall(query(1))
        assert read_message(sock)
    with server.tcp_socket() as sock:
        for _ in range(100):
            try:
                sock.sendall(bytes(1 << 18))
            except ConnectionError:
                break
            begun = time.monotonic()
            assert server.texts(WEB, tcp=True) == ["10.96.0.1"]
            assert time.monotonic() - begun < 0.5
    assert server.metrics().value("kdns_tcp_connections_closed_total", reason="unanswerable") == 1


def ask_after(pause: float, server: Server, stop: threading.Event, lost: list[str]) -> None:
    """Connections of one query each, which comes so many seconds after the connection is made."""
    while not stop.is_set():
        with server.tcp_socket() as sock:
            time.sleep(pause)
            try:
                sock.sendall(query(1))
                if read_message(sock) is None:
                    lost.append("closed")
            except ConnectionError as error:
                lost.append(repr(error))


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_a_reload_closes_no_connection_whose_query_is_on_its_way(pause: float, serve: Serve) -> None:
    server = serve(CLUSTER, workers=2)
    stop, lost = threading.Event(), list[str]()
    threads = [threading.Thread(target=ask_after, args=(pause, server, stop, lost)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for ttl in range(20, 25):
        time.sleep(0.4)
        server.write_corefile(kubernetes=f"ttl {ttl}")
        server.signal(signal.SIGUSR1)
    time.sleep(1)
    stop.set()
    for thread in threads:
        thread.join()
    assert not lost


def test_connections_that_there_is_no_descriptor_for_wait_and_are_accepted_later(
    serve: Serve, needs: Callable[..., None]
) -> None:
    needs("prlimit")
    server = serve(CLUSTER, workers=1, prefix=["prlimit", "--nofile=100:100"])
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(server.tcp_socket()) for _ in range(120)]
        procs.wait_until(lambda: server.metrics().value("kdns_tcp_accept_errors_total") > 0, 5, "no descriptor")
        before = procs.cpu_seconds(server.worker_pids())
        assert server.texts(WEB) == ["10.96.0.1"]
        time.sleep(1)
        assert procs.cpu_seconds(server.worker_pids()) - before < 0.3
        for sock in sockets[:60]:
            sock.close()
        sockets[-1].sendall(query(1))
        assert read_message(sockets[-1])
