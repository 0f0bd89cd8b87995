"""TCP connections that ask a great deal, ask nonsense, end abruptly, or are still asking when the configuration is
exchanged."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import dns.message
import pytest

from kdns.server import tcp
from tests.bench import tcp_load
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


def open_connections(server: Server) -> float:
    return server.metrics().value("kdns_tcp_connections")


def reset(sock: socket.socket) -> None:
    """Close a connection so that the other side gets a reset (socket(7) SO_LINGER)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_what_clients_do_before_they_are_accepted_counts(serve: Serve) -> None:
    server = serve(CLUSTER, workers=1)
    (worker,) = server.worker_pids()
    with contextlib.ExitStack() as stack:
        os.kill(worker, signal.SIGSTOP)
        try:
            sockets = [stack.enter_context(server.tcp_socket()) for _ in range(6)]
            asked, ended, began, silent, broken, gone = sockets
            asked.sendall(query(1))
            ended.sendall(query(2) * 3)
            ended.shutdown(socket.SHUT_WR)
            began.sendall(query(3)[:7])
            broken.sendall(query(4))
            reset(broken)
            gone.close()
        finally:
            os.kill(worker, signal.SIGCONT)
        assert (read_message(asked) or b"")[:2] == b"\0\1"
        assert [(read_message(ended) or b"")[:2] for _ in range(3)] == [b"\0\2"] * 3
        assert ended.recv(1) == b""
        began.sendall(query(3)[7:])
        assert (read_message(began) or b"")[:2] == b"\0\3"
        silent.sendall(query(5))
        assert (read_message(silent) or b"")[:2] == b"\0\5"
        procs.wait_until(lambda: open_connections(server) == 3, 3, "three are left")


def test_connections_that_are_reset_at_any_moment_leave_nothing_behind(serve: Serve) -> None:
    server = serve(CLUSTER, workers=1)
    workers = server.worker_pids()
    whole = query(1) * 2
    for size in range(len(whole) + 1):
        for wait in (False, True):
            sock = server.tcp_socket()
            sock.sendall(whole[:size])
            if wait and size >= len(query(1)):
                assert read_message(sock)
            reset(sock)
    greedy = [server.tcp_socket() for _ in range(10)]
    for sock in greedy:  # answers wait for them, in the server too
        sock.settimeout(0.05)
        with contextlib.suppress(TimeoutError):
            for _ in range(200):
                sock.sendall(query(1) * 1000)
    assert open_connections(server) == len(greedy)
    for sock in greedy:
        reset(sock)
    procs.wait_until(lambda: open_connections(server) == 0, 3, "the end of all")
    assert server.texts(WEB, tcp=True) == ["10.96.0.1"]
    assert server.worker_pids() == workers
    assert server.metrics().value("coredns_panics_total") == 0
    assert "Traceback" not in server.log


def test_many_queries_that_come_byte_by_byte_are_all_answered(serve: Serve) -> None:
    server = serve(CLUSTER, workers=1)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(server.tcp_socket()) for _ in range(50)]
        for sock in sockets:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(query(0))):
            for ident, sock in enumerate(sockets):
                sock.sendall(query(ident)[at : at + 1])
        for ident, sock in enumerate(sockets):
            assert (read_message(sock) or b"")[:2] == struct.pack("!H", ident)


@pytest.mark.parametrize(
    "options",
    [["-c", "50", "-n", "1"], ["-c", "10", "-n", "7", "-q", "3"], ["-c", "2", "-n", "0", "-q", "250"]],
    ids=" ".join,
)
def test_under_load_each_query_is_answered_and_counted_once(
    options: Sequence[str], serve: Serve, needs: Callable[..., None], tmp_path: Path
) -> None:
    needs("cc")
    server = serve(CLUSTER, workers=1)
    queries = tmp_path / "queries"
    queries.write_text(f"{WEB}. A\nno.{WEB}. A\n")
    command = [str(tcp_load.build(tmp_path)), "-p", str(server.port), "-d", str(queries), "-l", "1", *options]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=20).stdout)
    assert (found["lost"], found["broken"]) == (0, 0)
    assert found["codes"].keys() == {"NOERROR", "NXDOMAIN"}
    assert found["answered"] > 1000
    procs.wait_until(lambda: open_connections(server) == 0, 3, "the end of all")
    counted = server.metrics().value("coredns_dns_requests_total", proto="tcp")
    under_way = int(options[1]) * int(options[-1])  # when the time was up
    assert found["answered"] <= counted <= found["answered"] + under_way
