"""multisocket: how many workers there are, and sockets at an address."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from kdns.plugins import loads, multisocket
from tests.conftest import Serve
from tests.support import procs
from tests.support.configs import options, refused
from tests.support.server import Server

pytestmark = pytest.mark.one_speed

COREFILE = """
.:$dns {
    bind 127.0.0.1
    ready 127.0.0.1:$ready
    prometheus 127.0.0.1:$metrics
    whoami
    $plugins
}
"""


class Undecided(Server):
    """A server without `--workers`."""

    def command(self) -> list[str]:
        command = super().command()
        at = command.index("--workers")
        return command[:at] + command[at + 2 :]


def sockets(server: Server) -> int:
    """UDP sockets at the server's address, in the kernel's own list."""
    wanted = f"0100007F:{server.port:04X}"
    return sum(line.split()[1] == wanted for line in Path("/proc/net/udp").read_text().splitlines())


def state(server: Server) -> tuple[int, int, int]:
    """How many workers and sockets there are, and how many workers it tells of."""
    return len(server.worker_pids()), sockets(server), int(server.metrics().value("kdns_workers"))


def test_there_are_as_many_workers_and_sockets_as_it_says_also_after_a_reload(tmp_path: Path) -> None:
    with Undecided(tmp_path, corefile=COREFILE, plugins="multisocket 2", addresses=["127.0.0.1"]) as server:
        assert (len(server.worker_pids()), sockets(server)) == (2, 2)
        for number in (3, 1):
            server.write_corefile(plugins=f"multisocket {number}")
            server.signal(signal.SIGUSR1)
            procs.wait_until(lambda number=number: state(server) == (number,) * 3, 10, f"{number} workers")  # type: ignore[misc]
            assert all(server.query("a.test").answer == [] for _ in range(20))


def test_the_command_line_overrules_it(serve: Serve) -> None:
    server = serve(corefile=COREFILE, plugins="multisocket 2", addresses=["127.0.0.1"], workers=1)
    assert (len(server.worker_pids()), sockets(server)) == (1, 1)


def test_the_largest_number_of_all_server_blocks_holds() -> None:
    def wanted(*lines: str) -> int | None:
        text = "".join(f"z{number} {{\n{line}\n}}\n" for number, line in enumerate(lines))
        return multisocket.workers(loads(text).blocks, 7)

    assert wanted("multisocket 2", "multisocket 3", "whoami") == 3
    assert wanted("multisocket 2", "multisocket") == 7
    assert wanted("whoami") is None


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ("multisocket 0", '1: multisocket: "0" is out of range'),
        ("multisocket 65", '1: multisocket: "65" is out of range'),
        ("multisocket two", '1: multisocket: "two" is not a whole number'),
        ("multisocket 1 2", "1: multisocket has 2 arguments"),
        ("multisocket {\nx\n}", '2: multisocket has no option "x"'),
        ("multisocket\nmultisocket", "2: multisocket is given twice in a server block"),
    ],
)
def test_mistakes(directive: str, message: str) -> None:
    assert refused(directive) == [message]


def test_options() -> None:
    assert options("multisocket") == multisocket.Options(None)
    assert options("multisocket 64") == multisocket.Options(64)
