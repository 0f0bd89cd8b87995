"""What goes wrong in a cluster - kills, reloads, bad files, full disks - and what clients see of it: nothing.

Bounds are generous; the figures themselves are printed (`pytest -rP`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from kdns.server import batch
from tests.conftest import Record, Serve
from tests.support import corpus, objects, procs
from tests.support.netns import Netns
from tests.support.objects import Object
from tests.support.pacer import Pacer, Summary
from tests.support.server import COREFILE, ROOT, Metrics, Server, read_message

pytestmark = pytest.mark.one_speed

BATCH = batch.SIZE
"""What a worker holds in hand at most, and so all that dies with it."""
LAMEDUCK = COREFILE.replace("health $host:$health", "health $host:$health {\n        lameduck 2s\n    }")
NAMES = [
    *[(f"service-{number}.default.svc.cluster.local", "A") for number in range(20)],
    *[(f"service-{number}.default.svc.cluster.local", "AAAA") for number in range(10)],
    *[(f"host{number}.example.com.default.svc.cluster.local", "A") for number in range(20)],
]
FIRST = NAMES[0][0]


def cluster(count: int = 50, first_ip: str = "10.96.0.1") -> list[Object]:
    """Services of one endpoint each."""
    found = []
    for number in range(count):
        ip = first_ip if number == 0 else f"10.96.{number // 250}.{number % 250 + 2}"
        found.append(objects.service(f"service-{number}", ips=[ip]))
        found.append(
            objects.endpoint_slice(f"service-{number}", [objects.endpoint(f"10.1.{number // 250}.{number % 250}")])
        )
    return found


def assert_no_counter_fell(scrapes: list[Metrics]) -> None:
    for before, after in itertools.pairwise(scrapes):
        now = after.counters()
        fallen = {key: (value, now.get(key)) for key, value in before.counters().items() if now.get(key, -1.0) < value}
        assert not fallen


def note(record: Record, summary: Summary) -> None:
    record("sent", summary.sent)
    record("lost", len(summary.lost))
    record("slowest_ms", round(summary.slowest * 1000))
    record("longest_gap_ms", round(summary.gaps[0][1] * 1000) if summary.gaps else 0)


# Workers


def test_a_killed_worker_is_replaced_and_takes_no_more_with_it_than_it_held(serve: Serve, record: Record) -> None:
    server = serve(cluster(), workers=2)
    scrapes = [server.metrics()]
    with Pacer(server.port, NAMES) as pacer:
        for kills in range(1, 4):
            time.sleep(0.7)
            victim, other = server.worker_pids()
            os.kill(victim, signal.SIGKILL)
            seconds = procs.wait_until(lambda: replaced(server, victim), 5, "a new worker")  # noqa: B023
            record(f"replaced_ms_{kills}", round(seconds * 1000))
            assert other in server.worker_pids()
            scrapes += [server.metrics(), server.metrics()]
        time.sleep(0.7)
        summary = pacer.finish()
    scrapes.append(server.metrics())
    note(record, summary)
    assert len(summary.lost) <= 3 * BATCH
    assert summary.slowest < 2
    assert set(summary.rcodes) == {"0", "3"}
    assert_no_counter_fell(scrapes)
    assert scrapes[-1].value("coredns_dns_responses_total") >= summary.answered
    assert scrapes[-1].value("kdns_worker_restarts_total") == 3


def replaced(server: Server, victim: int) -> bool:
    now = server.worker_pids()
    return len(now) == server.workers and victim not in now


def test_a_worker_that_dies_over_tcp_leaves_its_listener_to_the_next(serve: Serve) -> None:
    server = serve(cluster(), workers=1)
    with server.tcp_socket() as open_connection:
        open_connection.sendall(framed(corpus.SEEDS["a"]))
        assert read_message(open_connection)
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        assert open_connection.recv(1) == b""
    assert server.texts(FIRST, tcp=True) == ["10.96.0.1"]


def test_a_killed_nursery_costs_no_answer_and_workers_are_still_replaced(serve: Serve, record: Record) -> None:
    server = serve(cluster(), workers=2)
    scrapes = [server.metrics()]
    with Pacer(server.port, NAMES) as pacer:
        time.sleep(0.5)
        old, workers = server.nursery(), server.worker_pids()
        assert old is not None
        os.kill(old, signal.SIGKILL)
        time.sleep(0.5)
        killed = time.monotonic()
        os.kill(workers[0], signal.SIGKILL)
        seconds = procs.wait_until(lambda: replaced(server, workers[0]), 10, "a new worker")
        record("replaced_ms", round(seconds * 1000))
        time.sleep(0.5)
        summary = pacer.finish()
    note(record, summary)
    assert not [moment for moment in summary.lost if moment < killed - 0.1]
    assert len(summary.lost) <= BATCH
    scrapes.append(server.metrics())
    assert_no_counter_fell(scrapes)
    assert server.nursery() not in (None, old)
    assert server.texts(FIRST) == ["10.96.0.1"]
    server.terminate()


# The whole server


def test_after_kill_9_of_everything_the_snapshot_answers_at_once(serve: Serve, record: Record) -> None:
    server = serve(cluster(1000), workers=2)
    procs.kill(server.pids())
    procs.wait_until(lambda: not server.pids(), 5, "the end of all processes")
    assert server.raw_udp(corpus.SEEDS["a"], timeout=0.2) is None
    # With nothing to read, what it says can only come from the snapshot.
    (server.manifests / "cluster.json").write_text("this is { no JSON")
    begin = time.monotonic()
    server.start(wait=False)
    procs.wait_until(lambda: right(server, FIRST, "10.96.0.1"), 5, "a right answer")
    record("answered_ms", round((time.monotonic() - begin) * 1000))
    assert server.texts("service-999.default.svc.cluster.local") == ["10.96.3.251"]
    assert server.query("none.default.svc.cluster.local").rcode() == dns.rcode.NXDOMAIN
    server.write_objects(cluster(1000, first_ip="10.96.200.1"))
    procs.wait_until(lambda: right(server, FIRST, "10.96.200.1"), 5, "the repaired manifest's answer")
    server.terminate()


def right(server: Server, name: str, address: str) -> bool:
    answer = server.raw_udp(dns.message.make_query(name, "A").to_wire(), timeout=0.1)
    if answer is None:
        return False
    return [str(rdata) for rrset in dns.message.from_wire(answer).answer for rdata in rrset] == [address]


def test_when_only_the_supervisor_is_killed_the_workers_answer_until_the_next_one_does(
    serve: Serve, record: Record
) -> None:
    server = serve(cluster(), workers=2)
    assert server.process is not None
    with Pacer(server.port, NAMES) as pacer:
        time.sleep(0.3)
        server.process.kill()
        server.process.wait()
        time.sleep(0.5)
        orphans = server.pids()
        assert server.texts(FIRST) == ["10.96.0.1"]
        server.write_objects(cluster(first_ip="10.96.200.1"))
        server.start()
        procs.wait_until(lambda: not any(map(procs.is_alive, orphans)), 10, "the end of the old workers")
        summary = pacer.finish()
    note(record, summary)
    assert not summary.lost
    assert set(summary.rcodes) == {"0", "3"}
    assert all(right(server, FIRST, "10.96.200.1") for _ in range(20))
    server.terminate()


def test_a_worker_that_hangs_is_replaced(serve: Serve) -> None:
    server = serve(cluster())
    (hanging,) = server.worker_pids()
    os.kill(hanging, signal.SIGSTOP)
    procs.wait_until(lambda: hanging not in server.pids(), 40, "the end of the worker that hangs")
    procs.wait_until(lambda: right(server, FIRST, "10.96.0.1"), 5, "its successor")
    assert "hangs" in server.log


def test_workers_without_supervisor_end_on_sigterm(serve: Serve) -> None:
    server = serve(cluster(), workers=2)
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    time.sleep(0.3)
    for pid in server.pids():
        os.kill(pid, signal.SIGTERM)
    procs.wait_until(lambda: not server.pids(), 10, "the end of the workers")


def test_sigterm_lames_the_duck_and_finishes_what_is_in_flight(serve: Serve, record: Record) -> None:
    server = serve(cluster(), corefile=LAMEDUCK, workers=2)
    with Pacer(server.port, NAMES, seconds=1.5) as pacer, server.tcp_socket() as before:
        time.sleep(0.3)
        server.signal(signal.SIGTERM)
        begin = time.monotonic()
        procs.wait_until(lambda: server.ready().status == 503, 1, "/ready with 503")
        assert server.health().status == 200
        before.sendall(framed(corpus.SEEDS["a"]) * 50)
        assert all(read_message(before) for _ in range(50))
        assert server.texts(FIRST, tcp=True) == ["10.96.0.1"]
        summary = pacer.finish()
    note(record, summary)
    assert not summary.lost
    took = server.terminate()  # a second SIGTERM may hasten it, but breaks nothing
    record("seconds", round(time.monotonic() - begin, 2))
    record("after_second_sigterm", round(took, 2))


def framed(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data


def test_lameduck_lasts_as_long_as_it_says(serve: Serve) -> None:
    server = serve(cluster(), corefile=LAMEDUCK)
    assert 1.9 < server.terminate() < 8


def test_without_lameduck_queries_that_were_sent_before_sigterm_are_answered(serve: Serve) -> None:
    server = serve(cluster())
    with server.tcp_socket() as tcp, server.udp_socket() as udp:
        udp.settimeout(2)
        tcp.sendall(framed(corpus.SEEDS["a"]) * 100)
        for number in range(BATCH):
            udp.send(struct.pack("!H", number) + corpus.SEEDS["a"][2:])
        server.terminate()
        assert all(read_message(tcp) for _ in range(100))
        assert {udp.recv(4096)[:2] for _ in range(BATCH)} == {struct.pack("!H", number) for number in range(BATCH)}
        assert read_message(tcp) is None


def test_sigint_ends_it_as_sigterm_does(serve: Serve) -> None:
    server = serve(cluster())
    assert server.process is not None
    server.signal(signal.SIGINT)
    assert server.process.wait(10) == 0
    assert not server.pids()


# Reload


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_reload_under_load_loses_no_query(serve: Serve, number: signal.Signals, record: Record) -> None:
    server = serve(cluster(), workers=2)
    scrapes = [server.metrics()]
    with Pacer(server.port, NAMES) as pacer:
        for ttl in (30, 40, 50):
            time.sleep(0.3)
            server.write_corefile(kubernetes=f"ttl {ttl}")
            server.signal(number)
            begin = time.monotonic()
            procs.wait_until(lambda: ttls(server) == {ttl}, 5, f"answers with TTL {ttl}")  # noqa: B023
            record(f"reloaded_ms_{ttl}", round((time.monotonic() - begin) * 1000))
            scrapes.append(server.metrics())
        time.sleep(0.3)
        summary = pacer.finish()
    note(record, summary)
    assert not summary.lost
    assert set(summary.rcodes) == {"0", "3"}
    assert_no_counter_fell(scrapes)


def ttls(server: Server) -> set[int]:
    """The TTLs of several answers, so that all workers have their say."""
    return {rrset.ttl for _ in range(20) for rrset in server.query(FIRST).answer}


@pytest.mark.parametrize(
    "bad",
    [
        ".:$dns {\n    no_such_plugin\n}\n",
        COREFILE.replace("loadbalance round_robin", "loadbalance by_moonlight"),
        COREFILE.replace("loadbalance round_robin", "loadbalance round_robin {"),
        COREFILE.replace("bind $addresses", "bind 192.0.2.1"),
    ],
    ids=["directive", "option", "syntax", "address"],
)
def test_a_bad_corefile_leaves_the_old_one_in_place(serve: Serve, bad: str) -> None:
    server = serve(cluster())
    before = server.metrics().value("coredns_reload_failed_total")
    good = server.template
    server.write_corefile(bad)
    server.signal(signal.SIGUSR1)
    procs.wait_until(
        lambda: server.metrics().value("coredns_reload_failed_total") == before + 1, 5, "the failure counted"
    )
    assert server.texts(FIRST) == ["10.96.0.1"]
    assert server.ready().status == 200
    assert str(server.conf) in server.log or "192.0.2.1" in server.log
    server.write_corefile(good, kubernetes="ttl 77")
    server.signal(signal.SIGUSR1)
    procs.wait_until(lambda: ttls(server) == {77}, 5, "answers of the corrected file")
    server.terminate()


def test_a_bad_corefile_stops_the_start_and_every_mistake_is_named(tmp_path: Path) -> None:
    server = Server(tmp_path, corefile=".:$dns {\n    no_such_plugin\n    errors\n    nor_this x\n}\n")
    try:
        code, said = server.run()
    finally:
        server.kill()
    assert code == 1
    assert "Corefile:2: " in said
    assert "Corefile:4: " in said
    assert "Traceback" not in said


# State


def test_a_second_instance_on_the_same_state_directory_is_refused(serve: Serve, tmp_path: Path) -> None:
    first = serve(cluster())
    second = Server(tmp_path / "second", cluster(), state_dir=first.state_dir)
    try:
        code, said = second.run()
    finally:
        second.kill()
    assert code == 1
    assert str(first.state_dir) in said
    assert str(first.process.pid if first.process else "") in said
    assert "Traceback" not in said
    assert first.texts(FIRST) == ["10.96.0.1"]


def test_a_port_that_is_taken_is_named(serve: Serve, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        server = Server(tmp_path / "taken", cluster(), addresses=["127.0.0.1"])
        taken.bind(("127.0.0.1", server.port))
        try:
            code, said = server.run()
        finally:
            server.kill()
    assert code == 1
    assert str(server.port) in said
    assert "Traceback" not in said


@pytest.mark.parametrize("harm", ["overwritten", "cut", "another version", "a directory's worth of zeros"])
def test_a_damaged_store_is_set_aside_and_rebuilt(serve: Serve, harm: str) -> None:
    server = serve(cluster())
    server.terminate()
    data = server.state_dir / "data.mdb"
    content = bytearray(data.read_bytes())
    if harm == "overwritten":
        for at in range(2 * 4096 + 100, len(content), 4096):
            content[at : at + 400] = b"\xa5" * len(content[at : at + 400])
    elif harm == "cut":
        del content[len(content) // 2 :]
    elif harm == "another version":
        content[20:24] = b"\x07\x07\x07\x07"
    else:
        content = bytearray(len(content))
    data.write_bytes(content)
    logged = len(server.log)
    server.start()
    said = server.log[logged:]
    assert server.texts(FIRST) == ["10.96.0.1"]
    [aside] = [path.name for path in server.state_dir.iterdir() if "damaged" in path.name]
    assert aside in said
    assert "Traceback" not in said
    server.terminate()


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    server = Server(tmp_path / "server", cluster(), state_dir=tmp_path / "file" / "state")
    try:
        code, said = server.run()
    finally:
        server.kill()
    assert code == 1
    assert str(tmp_path / "file" / "state") in said
    assert "Traceback" not in said


def test_a_full_disk_stops_updates_but_no_answer(small_disk: Path, tmp_path: Path) -> None:
    with Server(tmp_path / "server", cluster(), state_dir=small_disk / "state") as server:
        pids = server.pids()
        filler = small_disk / "filler"
        fill(filler)
        server.write_objects(cluster(3000, first_ip="10.96.200.1"))
        procs.wait_until(lambda: "space" in server.log.lower(), 10, "a word about the disk in the log")
        assert server.texts(FIRST) == ["10.96.0.1"]
        assert server.texts("service-49.default.svc.cluster.local", tcp=True) == ["10.96.0.51"]
        assert server.pids() == pids
        filler.unlink()
        server.write_objects(cluster(60, first_ip="10.96.201.1"))
        procs.wait_until(lambda: right(server, FIRST, "10.96.201.1"), 10, "the update once there is room")
        server.terminate()


def fill(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(fd, bytes(4096)):
            pass
    os.close(fd)


def test_a_worker_killed_on_a_full_disk_is_replaced_too(small_disk: Path, tmp_path: Path) -> None:
    with Server(tmp_path / "server", cluster(), state_dir=small_disk / "state") as server:
        fill(small_disk / "filler")
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        procs.wait_until(lambda: right(server, FIRST, "10.96.0.1"), 5, "an answer of the next worker")


# Privileges


NOBODY = 65534
RUN_AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]


def capabilities(*names: str) -> list[str]:
    """Options of setpriv that leave these capabilities and no others."""
    only = "".join(f",+{name}" for name in names)
    return [f"--inh-caps=-all{only}", f"--ambient-caps=-all{only}", f"--bounding-set=-all{only}"]


@pytest.fixture
def netns(make_netns: Callable[..., Netns]) -> Netns:
    return make_netns("port53")


@pytest.fixture
def nobodys(needs: Callable[..., None], netns: Netns) -> Iterator[Callable[..., Server]]:
    """Makes servers on port 53 of a network namespace that run as nobody, with the capabilities given."""
    needs("setpriv")
    with tempfile.TemporaryDirectory(prefix="kdns-nobody-") as name:
        folder = Path(name)
        shutil.copytree(ROOT / "kdns", folder / "kdns", ignore=shutil.ignore_patterns("__pycache__"))
        again = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import lmdb, msgspec']))"
        tried = subprocess.run(
            [*RUN_AS_NOBODY, *capabilities(), sys.executable, "-c", again], capture_output=True, cwd=folder
        )
        # Where the interpreter lies in a folder that is closed to others, one that opens it is added.
        more = ["dac_read_search"] if tried.returncode else []

        def make(*names: str) -> Server:
            server = Server(
                folder,
                cluster(),
                addresses=["127.0.0.1"],
                dns_port=53,
                connect=None,
                prefix=[*netns.prefix, *RUN_AS_NOBODY, *capabilities(*names, *more)],
                environ={"PYTHONPATH": name, "PYTHONDONTWRITEBYTECODE": "1", "HOME": name},
            )
            for path in (folder, *folder.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
            return server

        yield make


def test_port_53_needs_one_capability_and_no_root(nobodys: Callable[..., Server], netns: Netns) -> None:
    with nobodys("net_bind_service") as server, netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", 53))
        sock.settimeout(0.2)
        procs.wait_until(lambda: addresses(sock) == ["10.96.0.1"], 20, "an answer on port 53")
        for pid in server.pids():
            status = Path(f"/proc/{pid}/status").read_text()
            assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}" in status
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        procs.wait_until(lambda: addresses(sock) == ["10.96.0.1"], 5, "an answer of the next worker")
        server.terminate()


def test_without_the_capability_the_error_names_the_port(nobodys: Callable[..., Server]) -> None:
    server = nobodys()
    try:
        code, said = server.run()
    finally:
        server.kill()
    assert code == 1
    assert "127.0.0.1 port 53" in said
    assert "NET_BIND_SERVICE" in said
    assert "Traceback" not in said


def addresses(sock: socket.socket) -> list[str]:
    query = dns.message.make_query(FIRST, "A")
    try:
        sock.send(query.to_wire())
        answer = dns.message.from_wire(sock.recv(4096))
    except (TimeoutError, ConnectionRefusedError):
        return []
    return [str(rdata) for rrset in answer.answer for rdata in rrset]
