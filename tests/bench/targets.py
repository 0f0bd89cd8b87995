"""Servers that are measured, on 127.0.0.1: how they start and end, what they are, what memory they have."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import dns.message
import dns.rcode

from tests.bench.cluster import Cluster
from tests.support import procs
from tests.support.server import ROOT, Server

START_SECONDS = 120.0
POLL_SECONDS = 0.005
SAID = 2000
"""Characters of what a server said last that are quoted when it does not become ready."""
SETTLE_SECONDS = 1.0
KDNS, PYTHON = "kdns", "kdns (Python)"
AS_PYTHON = {"KDNS_COMPILED": "0"}
"""The environment of a kdns that uses no compiled module."""
COREFILE = """\
.:$dns {
    bind 127.0.0.1
    errors
    health 127.0.0.1:$health
    ready 127.0.0.1:$ready
    prometheus 127.0.0.1:$metrics
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        manifests $manifests
    }
    loadbalance round_robin
}
"""


def facts(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What `kdns version` says. environ: added to the environment."""
    command = [sys.executable, "-m", "kdns", "version", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | dict(environ or {}), check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def version(environ: Mapping[str, str] | None = None) -> str:
    """Of kdns, and whether it is compiled. environ: as for `facts`."""
    found = facts(environ)
    return f"{found['kdns']} ({'compiled' if found['compiled'] else 'Python'})"


class Target(Protocol):
    """A server under measurement. answers: False if it only responds."""

    name: str
    port: int
    answers: bool

    def start(self, prefix: Sequence[str]) -> None: ...
    def stop(self) -> None: ...
    def pids(self) -> list[int]: ...
    def version(self) -> str: ...
    def said(self) -> str:
        """What it wrote to standard output and error."""

    def is_ready(self) -> bool | None:
        """None: it does not tell."""


@dataclass(frozen=True, slots=True)
class Startup:
    """Seconds from the start of the process to the first right answer and to readiness (None for a server that does not
    tell); memory in bytes."""

    answered: float
    ready: float | None
    pss: int


class Kdns:
    """folder: its Corefile, manifests and state. The manifests, if it is to read any, are in `folder/manifests`.
    environ: added to the environment."""

    answers = True

    def __init__(
        self,
        folder: Path,
        corefile: str = COREFILE,
        *,
        name: str = KDNS,
        workers: int = 1,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.server = Server(folder, corefile=corefile, addresses=["127.0.0.1"], workers=workers, environ=environ)
        (folder / "manifests" / "cluster.json").unlink()
        self.port = self.server.port

    @classmethod
    def of(
        cls,
        cluster: Cluster,
        folder: Path,
        *,
        name: str = KDNS,
        workers: int = 1,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """With a cluster as JSON manifests."""
        target = cls(folder, name=name, workers=workers, environ=environ)
        cluster.write_json(folder / "manifests")
        return target

    def start(self, prefix: Sequence[str] = ()) -> None:
        self.server.prefix = list(prefix)
        self.server.start(wait=False)

    def stop(self) -> None:
        if self.server.process is None:
            return
        try:
            if self.server.process.poll() is None:
                self.server.terminate()
        finally:
            self.server.kill()

    def pids(self) -> list[int]:
        return self.server.pids()

    def cpu(self) -> tuple[float, float]:
        """CPU seconds of the supervisor, and of all other processes."""
        assert self.server.process is not None
        own = self.server.process.pid
        return procs.cpu_seconds([own]), procs.cpu_seconds(pid for pid in self.pids() if pid != own)

    def version(self) -> str:
        return version(self.server.environ)

    def said(self) -> str:
        return self.server.log

    def is_ready(self) -> bool:
        assert self.server.process is not None
        if self.server.process.poll() is not None:
            raise RuntimeError(f"kdns ended with {self.server.process.returncode}:\n{self.said()}")
        return self.server.ready().status == 200


@dataclass
class Other:
    """Another server: a command that stays in the foreground. answers: False if it only responds."""

    name: str
    port: int
    command: list[str]
    version_command: list[str]
    log: Path
    answers: bool = True
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self, prefix: Sequence[str] = ()) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*prefix, *self.command], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def pids(self) -> list[int]:
        assert self.process is not None
        return [found.pid for found in procs.session(self.process.pid)]

    def version(self) -> str:
        done = subprocess.run(self.version_command, capture_output=True, text=True)
        found = re.search(r"\b\d+\.\d[\w.]*", done.stdout + done.stderr)
        return found[0] if found else "unknown"

    def said(self) -> str:
        return self.log.read_text()

    def is_ready(self) -> None:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.said()}")


def start(target: Target, prefix: Sequence[str], name: str, address: str) -> Startup:
    """Start a server and wait until it gives `address` for `name`, if it has answers, and says that it is ready."""
    begin = time.monotonic()
    target.start(prefix)
    answered: float | None = None
    ready: float | None = None
    tells = True
    query = dns.message.make_query(name, "A").to_wire()
    while answered is None or (ready is None and tells):
        if time.monotonic() - begin > START_SECONDS:
            raise RuntimeError(f"{target.name} is not ready after {START_SECONDS} s:\n{target.said()[-SAID:]}")
        if ready is None and tells:
            state = target.is_ready()
            tells = state is not None
            ready = time.monotonic() - begin if state else None
        if answered is None and _gives(target.port, query, address if target.answers else None):
            answered = time.monotonic() - begin
        time.sleep(POLL_SECONDS)
    time.sleep(SETTLE_SECONDS)
    return Startup(answered, ready, memory(target))


def start_with(target: Target, prefix: Sequence[str], cluster: Cluster) -> Startup:
    """Start a server that has a cluster, and wait until it gives the last Service's address."""
    last = cluster.services - 1
    return start(target, prefix, cluster.service_names()[last], cluster.address(last))


def memory(target: Target) -> int:
    """PSS of all its processes in bytes, as if nobody else had mapped their files."""
    return procs.alone(target.pids())


def _gives(port: int, query: bytes, address: str | None) -> bool:
    """address: None is content with any response."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.05)
        sock.connect(("127.0.0.1", port))
        try:
            sock.send(query)
            response = dns.message.from_wire(sock.recv(4096))
        except OSError:
            return False
    if address is None:
        return True
    return response.rcode() == dns.rcode.NOERROR and [str(a) for rrset in response.answer for a in rrset] == [address]
