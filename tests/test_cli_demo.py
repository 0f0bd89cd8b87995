"""`kdns demo`, as a person starts it."""

from __future__ import annotations

import http.client
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.reversename
import pytest

from kdns.cli import demo
from kdns.errors import KdnsError
from tests.support import ports, procs, readme

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Demo:
    """A demo that runs. temporary: the folder in which it makes its own."""

    process: subprocess.Popen[str]
    port: int
    temporary: Path
    sample: Path

    def ask(self, name: str, rtype: str) -> dns.message.Message:
        """The response over UDP."""
        asked = dns.reversename.from_address(name).to_text() if rtype == "PTR" else name
        return dns.query.udp(dns.message.make_query(asked, rtype), "127.0.0.1", port=self.port, timeout=5)


def four_ports() -> int:
    """The first of four ports in a row that are free."""
    for _ in range(50):
        port = ports.free_port(["127.0.0.1"])
        try:
            demo.require_free(port)
        except KdnsError:
            continue
        return port
    raise AssertionError("no four free ports in a row")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Demo]:
    """A demo of a copy of the sample, that is ready."""
    sample = tmp_path / "sample"
    shutil.copytree(demo.SAMPLE.resolve(), sample)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    port = four_ports()
    code = f"import kdns.cli.demo as demo, pathlib; demo.SAMPLE = pathlib.Path({str(sample)!r}); import kdns.__main__"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "demo", "--port", str(port)],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1", "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    started = Demo(process, port, temporary, sample)
    try:
        procs.wait_until(lambda: is_ready(started), 15, "the demo to be ready")
        yield started
    finally:
        procs.kill([found.pid for found in procs.session(process.pid)])
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def is_ready(running: Demo) -> bool:
    """True if /ready says so; fails if the demo has ended."""
    assert running.process.poll() is None, running.process.stdout
    connection = http.client.HTTPConnection("127.0.0.1", running.port + 2, timeout=1)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def end(running: Demo) -> str:
    """Ctrl-C, as a terminal sends it to all processes in the foreground; what was printed."""
    os.killpg(running.process.pid, signal.SIGINT)
    text, _ = running.process.communicate(timeout=15)
    assert running.process.returncode == 0, text
    return text


def test_every_name_of_the_table_has_the_answer_that_it_promises(running: Demo) -> None:
    *there, missing = demo.EXAMPLES
    for example in there:
        response = running.ask(example.name, example.type)
        assert response.rcode() == dns.rcode.NOERROR, example
        assert dns.rdatatype.from_text(example.type) in {rrset.rdtype for rrset in response.answer}, example
    assert running.ask(missing.name, missing.type).rcode() == dns.rcode.NXDOMAIN


def test_the_output_has_all_names_and_lines_to_copy(running: Demo, needs: Callable[..., None]) -> None:
    needs("dig")
    lines = [example.dig(running.port) for example in demo.TO_TRY]
    for line in lines[:-1]:
        done = subprocess.run([*shlex.split(line), "+short"], capture_output=True, text=True, timeout=20)
        assert done.stdout.strip(), line
    with urllib.request.urlopen(f"http://127.0.0.1:{running.port + 3}/", timeout=5) as page:
        assert "Names asked for most" in page.read().decode()
    text = end(running)
    assert f"`kdns top :{running.port + 3}`" in text
    assert all(f"{example.name} " in text for example in demo.EXAMPLES)
    assert all(f"  {line}\n" in text for line in lines)
    assert max(map(len, re.findall(r"^.*\.local .*$", text, re.MULTILINE))) <= 80


def test_ctrl_c_ends_it_and_leaves_nothing_behind(running: Demo) -> None:
    text = end(running)
    assert "Traceback" not in text
    assert not procs.session(running.process.pid)
    assert not list(running.temporary.iterdir())


def test_a_changed_file_shows_within_a_second(running: Demo) -> None:
    file = running.sample / "shop.yaml"
    file.write_text(file.read_text().replace("10.96.20.1", "10.96.20.99"))
    start = time.monotonic()
    procs.wait_until(
        lambda: "10.96.20.99" in running.ask("web.shop.svc.cluster.local", "A").to_text(), 5, "the new address"
    )
    assert time.monotonic() - start < 1


def test_the_session_in_the_readme_is_what_happens(running: Demo, needs: Callable[..., None]) -> None:
    needs("dig")
    shown = readme.sessions("A first minute")
    assert len(shown) >= 4
    for one in shown:
        real = re.sub(r"^kdns\b", f"{sys.executable} -m kdns", one.command.replace("5300", str(running.port)))
        done = subprocess.run(shlex.split(real), cwd=ROOT, capture_output=True, text=True, timeout=30)
        assert plain(done.stdout, running.port) == plain(one.output, 5300), one.command


def plain(text: str, port: int) -> list[str]:
    """Lines without what differs from run to run: order, blanks, ID, serial, port, time."""
    text = re.sub(r", id \d+|\d+\.\d ms$", "", text, flags=re.MULTILINE)
    text = re.sub(r"(hostmaster\S+) \d+", r"\1 SERIAL", text).replace(f"port {port}", "port PORT")
    return sorted(" ".join(line.split()) for line in text.splitlines() if line.strip())


@pytest.mark.parametrize(("offset", "what"), [(0, "DNS"), (1, "health"), (3, "metrics")])
def test_a_port_that_is_taken_is_one_line_and_exit_code_1(offset: int, what: str) -> None:
    port = four_ports()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port + offset))
        taken.listen()
        done = subprocess.run(
            [sys.executable, "-m", "kdns", "demo", "--port", str(port)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"127.0.0.1 port {port + offset}/TCP ({what}) is not free: Address already in use; take others with --port\n"
    )


def test_where_nothing_can_be_written_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(KdnsError, match=r"no folder for temporary files: .*; name one with TMPDIR"):
        demo.demo(four_ports())
