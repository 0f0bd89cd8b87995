"""A kdns server as a real process, with everything that a test asks of it."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import string
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rdataclass
import dns.rdatatype
from prometheus_client.parser import text_string_to_metric_families

from tests.support import ports, procs
from tests.support.objects import Object, write_list

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 20.0
STOP_SECONDS = 15.0

COREFILE = """\
.:$dns {
    bind $addresses
    errors
    health $host:$health
    ready $host:$ready
    prometheus $host:$metrics
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        manifests $manifests
        $kubernetes
    }
    loadbalance round_robin
    $plugins
}
"""
"""What a test gets unless it writes its own. `$kubernetes` and `$plugins` are lines that it adds."""


API_COREFILE = COREFILE.replace("        manifests $manifests\n", "")
"""The same for a server that reads an API server: `kubernetes` says which."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response."""

    status: int
    body: str


class Metrics:
    """One scrape, parsed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.samples[sample.name, frozenset(sample.labels.items())] = sample.value

    def value(self, name: str, **labels: str) -> float:
        """The sum of all samples of a name that have these labels; 0 if there is none."""
        wanted = set(labels.items())
        return sum(value for (found, has), value in self.samples.items() if found == name and wanted <= has)

    def counters(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """All samples that may only grow."""
        endings = ("_total", "_count", "_sum", "_bucket")
        return {key: value for key, value in self.samples.items() if key[0].endswith(endings)}


class Server:
    """`kdns serve` on free ports of 127.0.0.1 and, where there is one, ::1.

    folder: where its Corefile, manifests, state and log lie. objects: written to `folder/manifests/cluster.json`.
    corefile: text in which `$dns`, `$metrics`, `$health`, `$ready`, `$host`, `$addresses`, `$manifests`, `$kubernetes`,
    `$plugins` stand for this server's values. kubernetes, plugins: lines that go into COREFILE. prefix: a command to
    run it under (`ip netns exec ...`). environ: added to the environment. dns_port: None takes a free one.
    program: Python that stands for `-m kdns`, to change what no option does before it calls `kdns.cli.app`.
    connect: the address that this process reaches it at; None if it cannot (another namespace: then no waiting).
    """

    def __init__(
        self,
        folder: Path,
        objects: Iterable[Object] = (),
        *,
        corefile: str = COREFILE,
        kubernetes: str = "",
        plugins: str = "",
        workers: int = 1,
        addresses: Sequence[str] | None = None,
        dns_port: int | None = None,
        connect: str | None = "127.0.0.1",
        prefix: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        state_dir: Path | None = None,
        program: str = "",
    ) -> None:
        self.folder = folder
        self.program = program
        self.workers = workers
        self.prefix = list(prefix)
        self.environ = dict(environ or {})
        self.connect = connect
        self.addresses = list(addresses or ["127.0.0.1", *(["::1"] if ports.has_ipv6() else [])])
        self.port = dns_port or ports.free_port()
        self.metrics_port, self.health_port, self.ready_port = (ports.free_port() for _ in range(3))
        self.template = corefile
        self.lines = {"kubernetes": kubernetes, "plugins": plugins}
        self.conf = folder / "Corefile"
        self.manifests = folder / "manifests"
        self.state_dir = state_dir or folder / "state"
        self.log_path = folder / "serve.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._leaders: list[int] = []
        self.manifests.mkdir(parents=True, exist_ok=True)
        self.write_objects(objects)
        self.write_corefile()

    # What it reads

    def write_corefile(self, text: str | None = None, **lines: str) -> None:
        """Write the Corefile (again). lines: `kubernetes` or `plugins`, as for the constructor."""
        self.template = text if text is not None else self.template
        self.lines |= lines
        values = {
            "dns": str(self.port),
            "metrics": str(self.metrics_port),
            "health": str(self.health_port),
            "ready": str(self.ready_port),
            "host": self.addresses[0],
            "addresses": " ".join(self.addresses),
            "manifests": str(self.manifests),
        }
        body = string.Template(self.template).safe_substitute(values | self.lines)
        temporary = self.conf.with_name(".Corefile.new")
        temporary.write_text(body)
        temporary.replace(self.conf)

    def write_objects(self, objects: Iterable[Object], name: str = "cluster.json") -> None:
        """Write a manifest, at once."""
        write_list(self.manifests / name, objects)

    # Its life

    def command(self) -> list[str]:
        """The command line."""
        kdns = ["-c", self.program] if self.program else ["-m", "kdns"]
        own = ["serve", "--conf", str(self.conf), "--state-dir", str(self.state_dir), "--workers", str(self.workers)]
        return [*self.prefix, sys.executable, *kdns, *own]

    def start(self, *, wait: bool = True) -> Self:
        """Start it in a session of its own; wait until it is ready unless told not to."""
        environ = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | self.environ
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=environ,
                start_new_session=True,
            )
        self._leaders.append(self.process.pid)
        if wait and self.connect is not None:
            self.wait_ready()
        return self

    def run(self, timeout: float = READY_SECONDS) -> tuple[int, str]:
        """Start it where it is expected to end by itself; its exit code and what it said."""
        before = len(self.log)
        self.start(wait=False)
        assert self.process is not None
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end within {timeout} s:\n{self.log}") from None
        return code, self.log[before:]

    def wait_ready(self, seconds: float = READY_SECONDS) -> float:
        """Wait until it answers over UDP and, if the Corefile has `ready`, /ready says 200; returns the seconds."""
        start = time.monotonic()
        self._wait(self.answers, seconds, "an answer")
        if "$ready" in self.template:
            self._wait(lambda: self.get("/ready", self.ready_port).status == 200, seconds, "/ready")
        return time.monotonic() - start

    def _wait(self, condition: Any, seconds: float, what: str) -> None:
        def tried() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"kdns ended with {self.process.returncode} before {what}:\n{self.log}")
            return bool(condition())

        try:
            procs.wait_until(tried, seconds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\nlog:\n{self.log}") from None

    def answers(self) -> bool:
        """True if any response to any query comes over UDP."""
        return (
            self.raw_udp(dns.message.make_query("dns-version.cluster.local", "TXT").to_wire(), timeout=0.2) is not None
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor."""
        assert self.process is not None
        self.process.send_signal(number)

    def terminate(self, timeout: float = STOP_SECONDS) -> float:
        """SIGTERM; returns the seconds until the end. It must exit with 0 and leave no process behind."""
        assert self.process is not None
        start = time.monotonic()
        self.process.terminate()
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there {timeout} s after SIGTERM:\n{self.log}") from None
        took = time.monotonic() - start
        assert code == 0, f"exit code {code} after SIGTERM:\n{self.log}"
        left = [found.pid for found in procs.session(self.process.pid)]
        assert not left, f"processes {left} outlived the supervisor:\n{self.log}"
        return took

    def kill(self) -> None:
        """SIGKILL to every process of it, and wait until all are gone."""
        for leader in self._leaders:
            for _ in range(20):
                left = [found.pid for found in procs.session(leader)]
                if not left:
                    break
                procs.kill(left)
                time.sleep(0.01)
        if self.process is not None:
            self.process.wait(STOP_SECONDS)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        if error is not None:
            error.add_note(f"log of kdns:\n{self.log[-4000:]}")

    # Its processes

    def pids(self) -> list[int]:
        """Supervisor, nursery and workers, orphans of them too."""
        assert self.process is not None
        return [found.pid for found in procs.session(self.process.pid)]

    def nursery(self) -> int | None:
        """The supervisor's child; None while there is none."""
        leader = self._leaders[-1]
        return next((found.pid for found in procs.session(leader) if found.parent == leader), None)

    def worker_pids(self) -> list[int]:
        """The nursery's children, and those of a nursery that is gone."""
        leader = self._leaders[-1]
        return [found.pid for found in procs.session(leader) if leader not in (found.pid, found.parent)]

    @property
    def log(self) -> str:
        """All that it wrote to standard output and error, from every start."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    # Its answers

    def query(
        self,
        name: str,
        rdtype: str = "A",
        *,
        tcp: bool = False,
        address: str | None = None,
        timeout: float = 3.0,
        **options: Any,
    ) -> dns.message.Message:
        """Ask over UDP or TCP; options go to dns.message.make_query (use_edns, payload, want_dnssec, rdclass...)."""
        query = dns.message.make_query(name, rdtype, **options)
        where = address or self.connect or "127.0.0.1"
        ask = dns.query.tcp if tcp else dns.query.udp
        return ask(query, where, timeout=timeout, port=self.port)

    def texts(self, name: str, rdtype: str = "A", **options: Any) -> list[str]:
        """The rdata of the answer section's records of the asked type, sorted."""
        wanted = dns.rdatatype.from_text(rdtype)
        answer = self.query(name, rdtype, **options).answer
        return sorted(str(rdata) for rrset in answer if rrset.rdtype == wanted for rdata in rrset)

    def udp_socket(self, address: str | None = None) -> socket.socket:
        """A connected UDP socket."""
        where = address or self.connect or "127.0.0.1"
        sock = socket.socket(socket.AF_INET6 if ":" in where else socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect((where, self.port))
        return sock

    def tcp_socket(self, address: str | None = None, timeout: float = 3.0) -> socket.socket:
        """A TCP connection."""
        return socket.create_connection((address or self.connect or "127.0.0.1", self.port), timeout)

    def raw_udp(self, data: bytes, timeout: float = 1.0, address: str | None = None) -> bytes | None:
        """Send bytes as one datagram; the first that comes back, or None."""
        with self.udp_socket(address) as sock:
            sock.settimeout(timeout)
            try:
                sock.send(data)
                return sock.recv(65535)
            except (TimeoutError, ConnectionRefusedError):
                return None

    def raw_tcp(self, *messages: bytes, timeout: float = 3.0, address: str | None = None) -> list[bytes]:
        """Send messages in one segment over one connection; the responses until as many came or it is closed."""
        with self.tcp_socket(address, timeout) as sock:
            sock.sendall(b"".join(struct.pack("!H", len(message)) + message for message in messages))
            return list(_responses(sock, len(messages)))

    # Its HTTP side

    def get(self, path: str, port: int) -> Reply:
        """GET; status 0 if nobody listens."""
        connection = http.client.HTTPConnection(self.connect or "127.0.0.1", port, timeout=3)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return Reply(response.status, response.read().decode())
        except (OSError, http.client.HTTPException):
            return Reply(0, "")
        finally:
            connection.close()

    def metrics(self) -> Metrics:
        """Scrape it."""
        reply = self.get("/metrics", self.metrics_port)
        assert reply.status == 200, f"/metrics: {reply}"
        return Metrics(reply.body)

    def ready(self) -> Reply:
        """GET /ready."""
        return self.get("/ready", self.ready_port)

    def health(self) -> Reply:
        """GET /health."""
        return self.get("/health", self.health_port)


def read_message(sock: socket.socket) -> bytes | None:
    """One message behind its length prefix (RFC 1035 4.2.2); None when the peer has closed."""
    prefix = _exactly(sock, 2)
    return None if prefix is None else _exactly(sock, int.from_bytes(prefix, "big"))


def _responses(sock: socket.socket, count: int) -> Iterable[bytes]:
    for _ in range(count):
        try:
            message = read_message(sock)
        except (TimeoutError, ConnectionResetError):
            return
        if message is None:
            return
        yield message


def _exactly(sock: socket.socket, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            return None
        data += part
    return data
