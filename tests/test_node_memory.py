"""A limit of memory: hostile clients do not make the kernel kill anything, and when it does, a worker goes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import flood, ports, procs
from tests.support.node import Cgroup
from tests.support.server import Server

LIMIT = 96 << 20
Record = Callable[[str, object], None]
COREFILE = """\
.:$dns {
    bind $addresses
    health $host:$health
    prometheus $host:$metrics
    cache {
        success 1000000 3600
        denial 1000000 1800
    }
    forward . 127.0.0.1:$upstream {
        force_tcp
    }
}
"""


@pytest.fixture
def group() -> Iterator[Cgroup]:
    if not Cgroup.available():
        pytest.skip("no memory cgroup can be made here")
    with Cgroup("memory") as group:
        yield group


@contextlib.contextmanager
def serving(folder: Path, group: Cgroup) -> Iterator[Server]:
    """A server in a cgroup, and its upstream outside of it."""
    port = ports.free_port()
    upstream = flood.start("upstream", port)
    server = Server(folder, corefile=COREFILE.replace("$upstream", str(port)), prefix=group.prefix)
    try:
        server.start(wait=False)
        procs.wait_until(lambda: answers(server), 20, "an answer")
        yield server
    finally:
        server.kill()
        upstream.kill()
        upstream.wait()
        assert upstream.stdout is not None
        upstream.stdout.close()


def answers(server: Server, name: str = "a.test") -> bool:
    reply = server.raw_udp(flood.query(name), 0.5)
    return reply is not None and reply[3] & 0xF == 0


def attack(server: Server, seconds: float) -> None:
    with flood.start("clients", server.port, seconds) as clients:
        clients.communicate(timeout=60 + seconds)


def bounds(server: Server) -> dict[str, float]:
    """How often each bound was met: of queries that wait, of what connections hold, of what is kept."""
    shown = server.metrics()
    return {
        "waiting": shown.value("kdns_pending_rejects_total"),
        "held": shown.value("kdns_tcp_connections_closed_total", reason="crowded"),
        "kept": shown.value("coredns_cache_evictions_total"),
    }


def test_hostile_clients_get_nothing_killed(tmp_path: Path, group: Cgroup, record: Record) -> None:
    group.set_limit(LIMIT)
    with serving(tmp_path, group) as server:
        before = server.pids()
        for _ in range(5):  # of these, one is enough unless the machine is very busy
            attack(server, 7)
            record("MiB of the limit", f"{group.usage() >> 20} of {LIMIT >> 20}")
            assert group.kills() == 0
            assert server.pids() == before
            if all(bounds(server).values()):
                break
        assert all(bounds(server).values()), bounds(server)
        procs.wait_until(lambda: answers(server), 10, "an answer")


def test_what_is_kept_takes_no_more_than_is_reckoned(tmp_path: Path, group: Cgroup, record: Record) -> None:
    group.set_limit(LIMIT)
    with serving(tmp_path, group) as server:
        before = procs.anonymous(server.worker_pids())
        names = [flood.query(f"name-{number:08d}.flood.test") for number in range(1500)]
        with server.udp_socket() as sock:
            for _ in range(3):
                for one in names:
                    sock.send(one)
                    sock.recv(65535)
        shown = server.metrics()
        kept = shown.value("coredns_cache_entries")
        taken = procs.anonymous(server.worker_pids()) - before
    assert kept == len(names) + 1
    record("bytes for an answer", taken / kept)
    assert taken / kept < 4500, "an answer of 800 bytes, kept by `cache` and, finished, by the packet cache"


def test_when_memory_does_run_out_a_worker_goes_and_is_back_at_once(tmp_path: Path, group: Cgroup) -> None:
    group.set_limit(80 << 20)
    with serving(tmp_path, group) as server:
        assert server.process is not None
        supervisor, nursery, workers = server.process.pid, server.nursery(), server.worker_pids()
        group.set_limit(group.usage() + (3 << 20))  # it does not know of this one
        clients = flood.start("clients", server.port, 30)
        try:
            procs.wait_until(lambda: group.kills() > 0, 30, "a kill by the kernel")
        finally:
            clients.kill()
            clients.wait()
        group.set_limit(None)  # with it, the next worker may be killed as well, again and again
        procs.wait_until(lambda: bool(set(server.worker_pids()) - set(workers)), 10, "a new worker")
        procs.wait_until(lambda: answers(server), 10, "an answer")
        assert procs.is_alive(supervisor)
        assert server.nursery() == nursery
        assert not set(workers) & set(server.worker_pids())
        assert "was ended by SIGKILL" in server.log


def test_a_worker_is_the_first_to_go(tmp_path: Path, group: Cgroup) -> None:
    group.set_limit(LIMIT)
    with serving(tmp_path, group) as server:
        assert server.process is not None
        others = [server.process.pid, server.nursery()]
        for worker in server.worker_pids():
            assert all(badness(worker) > badness(other) for other in others if other is not None)


def badness(pid: int) -> int:
    """As the kernel reckons it (proc(5) oom_score)."""
    return int(Path(f"/proc/{pid}/oom_score").read_text())


def test_memory_of_an_idle_instance(tmp_path: Path, group: Cgroup, record: Record) -> None:
    with serving(tmp_path, group) as server:
        taken = procs.pss(server.pids())
    record("PSS in MiB", taken >> 20)
    assert taken < 64 << 20
