"""Starts, reloads and ends that go wrong half way leave nothing behind: no process, no socket, no keeper given up."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Serve
from tests.support import objects, ports, procs
from tests.support.server import COREFILE, Server

pytestmark = pytest.mark.one_speed

CLUSTER = [objects.service("web", ips=["10.96.0.1"])]
WEB = "web.default.svc.cluster.local"
SECOND_PORT = COREFILE.replace(".:$dns {", ".:$dns .:SECOND {")


@pytest.fixture
def taken() -> Iterator[int]:
    """A TCP port of 127.0.0.1 that another program listens on and does not share."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_a_start_that_fails_behind_its_workers_ends_them(tmp_path: Path, taken: int) -> None:
    server = Server(tmp_path, CLUSTER, corefile=COREFILE.replace("$host:$health", f"127.0.0.1:{taken}"), workers=2)
    try:
        code, said = server.run()
        assert code == 1
        assert str(taken) in said
        procs.wait_until(lambda: not server.pids(), 1, "the end of its workers")
    finally:
        server.kill()


def test_a_reload_that_cannot_bind_its_pages_gives_back_the_sockets_that_it_opened(serve: Serve, taken: int) -> None:
    server = serve(CLUSTER, workers=2)
    second = ports.free_port()
    corefile = SECOND_PORT.replace("SECOND", str(second))
    server.write_corefile(corefile.replace("$host:$health", f"127.0.0.1:{taken}"))
    server.signal(signal.SIGUSR1)
    procs.wait_until(lambda: "the old one goes on" in server.log, 15, "the failure")
    assert not listens(second)
    assert server.texts(WEB) == ["10.96.0.1"]
    server.write_corefile(corefile)
    server.signal(signal.SIGUSR1)
    procs.wait_until(lambda: listens(second), 5, "the second port")
    server.terminate()


def test_sigterm_in_the_middle_of_a_reload_leaves_no_process(serve: Serve) -> None:
    server = serve(CLUSTER, workers=2)
    nursery = server.nursery()
    assert nursery is not None
    os.kill(nursery, signal.SIGSTOP)
    server.write_corefile(kubernetes="ttl 30")
    server.signal(signal.SIGUSR1)
    time.sleep(0.5)  # now the new workers are asked for
    server.signal(signal.SIGTERM)
    time.sleep(0.3)
    os.kill(nursery, signal.SIGCONT)
    server.terminate()


def test_sigterm_while_a_worker_is_replaced_leaves_no_process(serve: Serve) -> None:
    server = serve(CLUSTER, workers=2)
    nursery = server.nursery()
    assert nursery is not None
    os.kill(nursery, signal.SIGSTOP)
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    time.sleep(0.5)
    server.signal(signal.SIGTERM)
    time.sleep(0.3)
    os.kill(nursery, signal.SIGCONT)
    server.terminate()


def test_a_supervisor_that_was_out_of_descriptors_replaces_workers_and_reloads_when_it_has_some(serve: Serve) -> None:
    server = serve(CLUSTER, workers=1)
    assert server.process is not None
    supervisor = server.process.pid
    usual = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    victim = server.worker_pids()[0]
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (5, usual[1]))
    server.write_corefile(kubernetes="ttl 30")
    server.signal(signal.SIGUSR1)
    procs.wait_until(lambda: "the old one goes on" in server.log, 5, "the reload's failure")
    assert server.texts(WEB) == ["10.96.0.1"]
    os.kill(victim, signal.SIGKILL)
    procs.wait_until(lambda: "could not be started" in server.log, 5, "the failure to replace the worker")
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, usual)
    procs.wait_until(server.answers, 10, "an answer of the next worker")
    server.signal(signal.SIGUSR1)
    procs.wait_until(lambda: server.query(WEB).answer[0].ttl == 30, 5, "the new configuration")
    server.terminate()


def test_the_nursery_has_nothing_open_that_is_to_end_with_the_supervisor(serve: Serve) -> None:
    server = serve(CLUSTER)
    nursery = server.nursery()
    assert nursery is not None
    opened = {entry.name: str(entry.readlink()) for entry in Path(f"/proc/{nursery}/fd").iterdir()}
    sockets = [target for target in opened.values() if target.startswith("socket:")]
    assert len(sockets) == 1, "the one by which the supervisor asks for workers"
    assert opened["0"] == "/dev/null"
    assert not [target for target in opened.values() if "memfd:" in target or "kdns" in Path(target).name]


def test_descriptors_and_memory_stay_the_same_over_reloads_and_kills(serve: Serve) -> None:
    server = serve(CLUSTER, workers=2)
    assert server.process is not None
    supervisor, nursery = server.process.pid, server.nursery()
    assert nursery is not None

    def reload(ttl: int) -> None:
        server.write_corefile(kubernetes=f"ttl {ttl}")
        server.signal(signal.SIGUSR1)
        procs.wait_until(lambda: {server.query(WEB).answer[0].ttl for _ in range(10)} == {ttl}, 5, f"TTL {ttl}")
        procs.wait_until(lambda: len(server.worker_pids()) == 2, 10, "the end of the old workers")

    def kill() -> None:
        victim = server.worker_pids()[0]
        os.kill(victim, signal.SIGKILL)
        procs.wait_until(lambda: victim not in (now := server.worker_pids()) and len(now) == 2, 10, "a new worker")

    for number in range(3):
        reload(20 + number)
        kill()
    time.sleep(0.5)
    before = [descriptors(pid) for pid in (supervisor, nursery)]
    memory = procs.anonymous([supervisor])
    for number in range(15):
        reload(30 + number)
        kill()
    time.sleep(0.5)
    assert [descriptors(pid) for pid in (supervisor, nursery)] == before
    assert procs.anonymous([supervisor]) < memory + (4 << 20)
    zombies = [
        stat
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and (stat := procs.stat(int(entry.name)))
        and stat.session == supervisor
        and stat.state == "Z"
    ]
    assert not zombies
    server.terminate()


def test_more_sockets_than_a_process_may_have_by_default_are_opened_and_handed_on(
    serve: Serve, needs: Callable[..., None]
) -> None:
    """A thousand descriptors is the usual soft limit; the hard one is far above it."""
    needs("prlimit")
    addresses = ["127.0.0.1", *(f"127.0.1.{number}" for number in range(1, 131))]
    server = serve(CLUSTER, workers=4, addresses=addresses, prefix=["prlimit", "--nofile=1000:"])
    victim = server.worker_pids()[0]
    os.kill(victim, signal.SIGKILL)
    procs.wait_until(lambda: victim not in (now := server.worker_pids()) and len(now) == 4, 10, "a new worker")
    assert all(server.query(WEB, address=address).answer for address in addresses)
    server.terminate()


def test_too_many_sockets_for_the_system_are_an_error_and_no_traceback(
    tmp_path: Path, needs: Callable[..., None]
) -> None:
    needs("prlimit")
    addresses = ["127.0.0.1", *(f"127.0.1.{number}" for number in range(1, 61))]
    server = Server(tmp_path, CLUSTER, workers=2, addresses=addresses, prefix=["prlimit", "--nofile=200:200"])
    try:
        code, said = server.run()
    finally:
        server.kill()
    assert code == 1
    assert "Too many open files" in said
    assert "Traceback" not in said


DIES_AFTER_FORK = """
import os, signal
real = os.pidfd_open
def die(pid, flags=0):
    if pid == os.getpid():
        return real(pid, flags)
    print(f"the nursery ends behind the fork of {pid}.", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
os.pidfd_open = die
from kdns.cli import app
app(prog_name="kdns")
"""
"""The first nursery, which is forked from the supervisor, ends before it has answered; the next is a fresh process."""


def test_a_worker_whose_nursery_ended_before_it_said_so_ends_and_leaves_the_next_ones_sockets_alone(
    serve: Serve,
) -> None:
    server = serve(CLUSTER, program=DIES_AFTER_FORK)
    found = re.findall(r"behind the fork of (\d+)\.", server.log)
    assert len(found) == 1
    procs.wait_until(lambda: not procs.is_alive(int(found[0])), 5, "the end of the worker that nobody knows of")
    [worker] = server.worker_pids()
    for _ in range(20):
        assert server.texts(WEB, timeout=1.0) == ["10.96.0.1"]
    os.kill(worker, signal.SIGKILL)
    procs.wait_until(lambda: server.worker_pids() not in ([], [worker]), 5, "another worker")
    assert len(server.worker_pids()) == 1
    procs.wait_until(server.answers, 5, "its answer")
    for _ in range(20):
        assert server.texts(WEB, timeout=1.0) == ["10.96.0.1"]
    server.terminate()


def test_a_nursery_that_is_started_again_has_no_descriptor_of_a_worker(serve: Serve) -> None:
    server = serve(CLUSTER, workers=2)
    first = server.nursery()
    assert first is not None
    workers = server.worker_pids()
    os.kill(first, signal.SIGKILL)
    os.kill(workers[0], signal.SIGKILL)
    procs.wait_until(lambda: set(server.worker_pids()) - set(workers) != set(), 10, "a worker of another nursery")
    procs.wait_until(server.answers, 5, "an answer")
    assert server.nursery() not in (None, first)
    opened = [str(entry.readlink()) for entry in Path(f"/proc/{server.nursery()}/fd").iterdir()]
    assert not [target for target in opened if "pidfd" in target or "memfd:" in target]
    assert len([target for target in opened if target.startswith("socket:")]) == 1
    server.terminate()


def test_a_worker_that_a_real_time_signal_ends_is_told_of(serve: Serve) -> None:
    server = serve([])
    os.kill(server.worker_pids()[0], signal.SIGRTMIN + 6)
    procs.wait_until(lambda: f"was ended by signal {signal.SIGRTMIN + 6}\n" in server.log, 10, "the message")
    assert "Traceback" not in server.log
