"""The zone store of `kdns node`: there while its Corefile needs it, and never in the way of other answers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.exception
import pytest

from kdns.cli import check
from tests.support.loopback import Node
from tests.support.procs import wait_until
from tests.support.server import Server
from tests.support.upstream import FakeUpstream
from tests.support.volume import Volume

pytestmark = pytest.mark.one_speed

OUTSIDE = "192.0.2.1"
"""What FakeUpstream says to everything."""
PLAIN = """\
.:$dns {
    errors
    bind __PILLAR__LOCAL__DNS__
    forward . $upstream {
        force_tcp
    }
    prometheus $host:$metrics
    $plugins
}
"""
REFUSING_FIRST = """\
import kdns.cli
from kdns.errors import StoreError
from kdns.server import feeds

make_feeds = feeds.make_feeds

def refuse(*arguments):
    feeds.make_feeds = make_feeds
    raise StoreError("the disk is gone")

feeds.make_feeds = refuse
kdns.cli.app()
"""
"""`python -m kdns`, but of a store that was opened the first transaction fails."""
LITTLE_MEMORY = """\
import kdns.cli
from kdns.server import secondary_feed

secondary_feed.memory_limit = lambda: 1 << 20
secondary_feed.FIRST_RETRIES = 0.01, 0.01
kdns.cli.app()
"""
"""`python -m kdns`, but with room for 100 KiB of records, and no patience."""
ZONE = "$ORIGIN z.test.\n@ 60 SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\na 60 A {}\n"


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream() as running:
        yield running


@pytest.fixture
def node(tmp_path: Path, upstream: FakeUpstream, serve: Callable[..., Server]) -> Iterator[Callable[..., Node]]:
    """Make instances, each in a folder of its own; all end with the test."""
    (tmp_path / "db").write_text(ZONE.format("10.0.0.1"))
    made: list[Node] = []

    def make(plugins: str = "", **options: Any) -> Node:
        folder = tmp_path / f"node{len(made)}"
        folder.mkdir()
        corefile = PLAIN.replace("$upstream", upstream.to)
        made.append(Node(folder, Volume(folder / "kube-dns"), corefile=corefile, plugins=plugins, **options))
        return made[-1]

    yield make
    for one in made:
        one.kill()


def a_file(tmp_path: Path) -> str:
    return f"file {tmp_path}/db z.test {{\n reload 100ms\n }}"


def rewrite(server: Node, plugins: str) -> None:
    server.write_corefile(plugins=plugins)
    server.signal(signal.SIGHUP)


def told(server: Server, name: str) -> str:
    """The first address for a name, or the response code."""
    reply = server.query(name)
    return str(reply.answer[0][0]) if reply.answer else str(reply.rcode())


def comes(server: Server, name: str, answer: str, seconds: float = 10) -> None:
    def there() -> bool:
        with contextlib.suppress(dns.exception.Timeout):  # it was with a worker that is gone
            return told(server, name) == answer
        return False

    wait_until(there, seconds, f"{answer} for {name}")


def open_files(server: Server) -> list[str]:
    """What the supervisor and its workers have open or mapped of the state directory."""
    assert server.process is not None
    found: list[str] = []
    for pid in (server.process.pid, *server.worker_pids()):
        with contextlib.suppress(FileNotFoundError):  # it has just ended, or closed one
            proc = Path(f"/proc/{pid}")
            found += (proc / "maps").read_text().split()
            found += [str(fd.readlink()) for fd in (proc / "fd").iterdir()]
    return [path for path in found if path.startswith(str(server.state_dir))]


def test_the_store_is_there_while_the_corefile_needs_it(tmp_path: Path, node: Callable[..., Node]) -> None:
    with node() as server:
        assert told(server, "a.z.test") == OUTSIDE
        assert not server.state_dir.exists()
        rewrite(server, a_file(tmp_path))
        comes(server, "a.z.test", "10.0.0.1")
        assert open_files(server)
        (tmp_path / "db").write_text(ZONE.format("10.0.0.2").replace("hostmaster 1", "hostmaster 2"))
        comes(server, "a.z.test", "10.0.0.2")
        rewrite(server, "")
        comes(server, "a.z.test", OUTSIDE)
        wait_until(lambda: not open_files(server), 10, "the end of the store")
        rewrite(server, a_file(tmp_path))  # what is there by now is read in a process of its own
        comes(server, "a.z.test", "10.0.0.2")


def test_a_store_that_somebody_takes_away_is_made_anew(tmp_path: Path, node: Callable[..., Node]) -> None:
    """It was open, but no new worker could have opened it: neither after a kill nor after a reload."""
    with node(a_file(tmp_path)) as server:
        comes(server, "a.z.test", "10.0.0.1")
        shutil.rmtree(server.state_dir)
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        comes(server, "a.z.test", "10.0.0.1")
        assert told(server, "a.other.test") == OUTSIDE
        assert "[ERROR] file" not in server.log, "nobody follows into a store that is closed"
        assert f"zone store: somebody has taken it out of {server.state_dir}" in server.log
        assert (server.state_dir / "data.mdb").exists()
        (server.state_dir / "lock.mdb").unlink()  # a new worker would make its own, and hear of no commit
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.log.count("somebody has taken it out of") == 2, 10, "a new store")
        (tmp_path / "db").write_text(ZONE.format("10.0.0.2").replace("hostmaster 1", "hostmaster 2"))
        comes(server, "a.z.test", "10.0.0.2")


def test_a_configuration_that_is_not_taken_leaves_no_store(tmp_path: Path, node: Callable[..., Node]) -> None:
    with node() as server, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        rewrite(server, f"{a_file(tmp_path)}\n}}\n.:{port} {{\n bind __PILLAR__LOCAL__DNS__\n whoami")
        wait_until(lambda: "the new configuration was not taken" in server.log, 10, "a refusal")
        assert server.state_dir.exists()
        assert not open_files(server)


def test_after_a_restart_it_has_what_it_had(tmp_path: Path, node: Callable[..., Node]) -> None:
    with node(a_file(tmp_path)) as server:
        comes(server, "a.z.test", "10.0.0.1")
        server.terminate()
        (tmp_path / "db").unlink()
        server.start()
        assert told(server, "a.z.test") == "10.0.0.1"


def test_of_two_instances_with_one_directory_the_second_has_it_when_the_first_is_gone(
    tmp_path: Path, node: Callable[..., Node]
) -> None:
    with node(a_file(tmp_path)) as first, node(a_file(tmp_path), state_dir=first.state_dir) as second:
        comes(first, "a.z.test", "10.0.0.1")
        assert (told(second, "a.z.test"), told(second, "a.other.test")) == ("2", OUTSIDE)
        assert f"state directory {first.state_dir} is in use by process" in second.log
        assert second.log.count("is in use by process") == 1
        first.terminate()
        comes(second, "a.z.test", "10.0.0.1", 20)


def test_a_directory_that_cannot_be_used_keeps_no_other_answer_away(tmp_path: Path, node: Callable[..., Node]) -> None:
    (tmp_path / "state").write_text("no directory")
    plugins = f"{a_file(tmp_path)}\n transfer {{\n to *\n }}"
    with node(plugins, state_dir=tmp_path / "state") as server:
        assert (told(server, "a.z.test"), told(server, "a.other.test")) == ("2", OUTSIDE)
        assert server.query("other.test", "AXFR", tcp=True).rcode() == 2
        assert f"[WARNING] state directory {tmp_path}/state: " in server.log
        (tmp_path / "state").unlink()
        comes(server, "a.z.test", "10.0.0.1", 20)
        assert "the zone store can be used" in server.log


def test_a_copy_that_there_is_no_memory_for_is_not_taken_and_the_next_plugin_is_asked(
    tmp_path: Path, node: Callable[..., Node], serve: Callable[..., Server]
) -> None:
    (tmp_path / "zone").write_text(ZONE.format("10.0.0.1"))
    file = f"file {tmp_path}/zone z.test {{\n reload 100ms\n }}"
    primary = serve(corefile=f".:$dns {{\n bind $addresses\n {file}\n transfer {{\n to *\n }}\n}}\n")
    comes(primary, "a.z.test", "10.0.0.1")
    copy = f"secondary z.test {{\n transfer from 127.0.0.1:{primary.port}\n fallback\n }}"
    with node(copy, program=LITTLE_MEMORY) as server:
        comes(server, "a.z.test", "10.0.0.1")
        more = "".join(f"a{number} 60 A 10.0.1.1\n" for number in range(3000))
        (tmp_path / "zone").write_text(ZONE.format("10.0.0.2").replace("hostmaster 1", "hostmaster 2") + more)
        comes(server, "a.z.test", OUTSIDE)  # and not what it was
        assert "more than the limit of memory leaves for it" in server.log
        failed = server.metrics().value("kdns_secondary_transfers_total", zone="z.test.", result="failed")
    assert failed == 1, "what is too large is not fetched again and again"


def test_each_of_several_copies_may_take_what_there_is_for_one(
    tmp_path: Path, node: Callable[..., Node], serve: Callable[..., Server]
) -> None:
    most = "".join(f"a{number} 60 A 10.0.1.1\n" for number in range(1000))  # more than half of the room
    for zone in ("y", "z"):
        (tmp_path / zone).write_text(ZONE.replace("z.test", f"{zone}.test").format("10.0.0.1") + most)
    files = "".join(f"file {tmp_path}/{zone} {zone}.test\n" for zone in ("y", "z"))
    primary = serve(corefile=f".:$dns {{\n bind $addresses\n {files} transfer {{\n to *\n }}\n}}\n")
    comes(primary, "a.z.test", "10.0.0.1")
    copies = f"secondary y.test z.test {{\n transfer from 127.0.0.1:{primary.port}\n fallback\n }}"
    with node(copies, program=LITTLE_MEMORY) as server:
        for zone in ("y", "z"):
            comes(server, f"a999.{zone}.test", "10.0.1.1")


def test_a_store_that_fails_after_it_was_opened_does_not_end_the_start(
    tmp_path: Path, node: Callable[..., Node]
) -> None:
    with node(a_file(tmp_path), program=REFUSING_FIRST) as server:
        assert (told(server, "a.z.test"), told(server, "a.other.test")) == ("2", OUTSIDE)
        assert "the disk is gone; until it can be used" in server.log
        comes(server, "a.z.test", "10.0.0.1", 20)
        assert server.metrics().value("kdns_store_errors_total") == 1


def test_a_disk_that_was_full_at_the_start_is_used_when_there_is_room(
    tmp_path: Path, small_disk: Path, node: Callable[..., Node]
) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with node(a_file(tmp_path), state_dir=small_disk / "state") as server:
        assert (told(server, "a.z.test"), told(server, "a.other.test")) == ("2", OUTSIDE)
        assert "No space left on device" in server.log
        filler.unlink()
        comes(server, "a.z.test", "10.0.0.1", 20)


def test_a_disk_that_is_not_to_be_written_keeps_no_other_answer_away(
    tmp_path: Path, small_disk: Path, node: Callable[..., Node]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with node(a_file(tmp_path), state_dir=small_disk / "state") as server:
        assert (told(server, "a.z.test"), told(server, "a.other.test")) == ("2", OUTSIDE)
        assert "Read-only file system" in server.log
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
        comes(server, "a.z.test", "10.0.0.1", 20)


@pytest.mark.parametrize(
    ("directive", "refused"),
    [
        ("file db", ""),
        ("auto {\n directory zones\n}", ""),
        ("secondary {\n transfer from 10.96.0.11\n}", ""),
        ("transfer {\n to *\n}", ""),
        ("kubernetes cluster.local", "kubernetes has no place on a node: each node would follow all of the cluster"),
        ("kubernetes\nk8s_external e.test", "k8s_external has no place on a node: it goes with kubernetes"),
    ],
)
def test_what_a_node_can_have(tmp_path: Path, directive: str, refused: str) -> None:
    corefile = tmp_path / "Corefile"
    corefile.write_text(f"z.test {{\n {directive}\n}}\n")
    report = check.report(corefile, node=True)
    assert report["ok"] is not bool(refused)
    assert refused in "\n".join(mistake["message"] for mistake in report["mistakes"])
