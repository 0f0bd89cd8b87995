"""An instance that ends while another one has the same addresses: an upgrade that overlaps."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import dns.message
import pytest

from kdns.server.presence import Identity, Presence
from tests.conftest import Serve
from tests.support.pacer import Pacer
from tests.support.server import Server, read_message

pytestmark = pytest.mark.one_speed

QUERY = dns.message.make_query("dns-version.cluster.local", "TXT").to_wire()
NAMES = [("dns-version.cluster.local", "TXT"), ("nothing.cluster.local", "A")]
CHANGES = 4


def ask_over_tcp(server: Server, stop: threading.Event, failures: list[str], answers: list[int]) -> None:
    """One connection after the other, a query on each, until told to stop."""
    while not stop.is_set():
        try:
            with server.tcp_socket(timeout=5) as sock:
                sock.sendall(len(QUERY).to_bytes(2, "big") + QUERY)
                found = read_message(sock)
            if found is None:
                failures.append("closed without an answer")
            answers[0] += 1
        except OSError as error:
            failures.append(repr(error))
        time.sleep(0.002)


def test_instances_that_relieve_each_other_lose_no_query(serve: Serve) -> None:
    server = serve()
    stop, failures, answers = threading.Event(), list[str](), [0]
    asking = threading.Thread(target=ask_over_tcp, args=(server, stop, failures, answers))
    with Pacer(server.port, NAMES, rate=2000, seconds=60) as pacer:
        asking.start()
        try:
            for _ in range(CHANGES):
                successor = serve(dns_port=server.port)
                server.terminate()
                server = successor
        finally:
            stop.set()
            asking.join()
        summary = pacer.finish()
    assert summary.lost == []
    assert summary.sent > 1000
    # Between the last connection that an old instance accepts and the end of its listening socket, the kernel may take
    # one more, which it resets: Linux moves such connections only with net.ipv4.tcp_migrate_req.
    assert len(failures) <= CHANGES, failures
    assert answers[0] > 100


def test_what_waits_in_the_socket_of_an_instance_that_ends_is_answered(serve: Serve) -> None:
    server = serve()
    idents = {number.to_bytes(2, "big") for number in range(100)}
    (worker,) = server.worker_pids()
    with server.udp_socket() as sock:
        sock.settimeout(5)
        os.kill(worker, signal.SIGSTOP)
        for ident in idents:
            sock.send(ident + QUERY[2:])
        server.signal(signal.SIGTERM)
        time.sleep(0.3)  # so that the supervisor has given up the socket when the worker goes on
        os.kill(worker, signal.SIGCONT)
        assert {sock.recv(512)[:2] for _ in idents} == idents
    assert server.process is not None
    assert server.process.wait(10) == 0


def test_after_its_end_nobody_waits_for_an_answer(serve: Serve) -> None:
    server = serve()
    server.terminate()
    with server.udp_socket() as sock:
        sock.settimeout(5)
        sock.send(QUERY)
        try:
            sock.recv(512)
        except ConnectionRefusedError:
            return
    raise AssertionError("an answer from nobody")


def test_an_instance_sees_others_at_its_addresses() -> None:
    ours, theirs = f"192.0.2.1#{os.getpid()}", f"192.0.2.2#{os.getpid()}"
    first, other = Presence((ours,)), Presence((theirs,))
    assert not first.identity.has_others()
    second = Presence((ours, theirs))
    for one in (first, second, other):
        assert one.identity.has_others()
        assert not one.identity.has_others(serving=True)
    second.serve()
    assert first.identity.has_others(serving=True)
    assert not second.identity.has_others(serving=True)
    second.close()
    assert not first.identity.has_others()
    assert not first.identity.has_others(serving=True)
    first.close()
    other.close()


def test_other_unix_sockets_are_no_instances() -> None:
    place = f"192.0.2.3#{os.getpid()}"
    identity = Identity("", (place,))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0not-kdns-node/{place}/1")
        assert not identity.has_others()
    presence = Presence((place,))
    assert identity.has_others()
    presence.close()
