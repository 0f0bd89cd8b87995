"""The servers that are measured, each with one worker on 127.0.0.1, pinned to one CPU while under load."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import dns.message
import dns.rcode

from tests.bench.cluster import ZONE, Cluster
from tests.support import ports, procs
from tests.support.server import ROOT, Server

START_SECONDS = 60.0
POLL_SECONDS = 0.005
SETTLE_SECONDS = 1.0
WILDCARD = "bench.example"
"""A zone in which every name has WILDCARD_ADDRESS, for an hour."""
WILDCARD_ADDRESS = "192.0.2.1"
TTLS = (7, 20, 300)
"""And of the names ttl7, ttl20 and ttl300 in it, seconds."""
_PATH = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"

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


class Target(Protocol):
    """A server under measurement."""

    name: str
    port: int

    def start(self, prefix: Sequence[str]) -> None: ...
    def stop(self) -> None: ...
    def pids(self) -> list[int]: ...
    def version(self) -> str: ...
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
    """folder: its Corefile, manifests and state. The manifests, if it is to read any, are in `folder/manifests`."""

    name = "kdns"

    def __init__(self, folder: Path, corefile: str = COREFILE) -> None:
        self.server = Server(folder, corefile=corefile, addresses=["127.0.0.1"], workers=1)
        (folder / "manifests" / "cluster.json").unlink()
        self.port = self.server.port

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

    def version(self) -> str:
        command = [sys.executable, "-m", "kdns", "version"]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip().splitlines()[0]

    def is_ready(self) -> bool:
        assert self.server.process is not None
        if self.server.process.poll() is not None:
            raise RuntimeError(f"kdns ended with {self.server.process.returncode}:\n{self.server.log}")
        return self.server.ready().status == 200


@dataclass
class Other:
    """Another server: a command that stays in the foreground."""

    name: str
    port: int
    command: list[str]
    version_command: list[str]
    log: Path
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
        return subprocess.run(self.version_command, capture_output=True, text=True).stdout.splitlines()[0]

    def is_ready(self) -> None:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.log.read_text()}")


def knot(folder: Path, cluster: Cluster) -> Other | None:
    """Knot DNS with one UDP worker and the same names in a zone file; None if it is not installed."""
    folder.mkdir()
    return _knot(folder, ZONE, cluster.write_zone(folder / f"{ZONE}.zone"))


def wildcard(folder: Path) -> Other | None:
    """Knot DNS with the zone WILDCARD, as somebody to ask; None if it is not installed."""
    folder.mkdir()
    zone = folder / "zone"
    records = [f"$ORIGIN {WILDCARD}.", "$TTL 3600", "@ SOA ns hostmaster 1 7200 1800 86400 3600", "@ NS ns"]
    records += [f"ns A {WILDCARD_ADDRESS}", f"* A {WILDCARD_ADDRESS}"]
    records += [f"ttl{ttl} {ttl} A {WILDCARD_ADDRESS}" for ttl in TTLS]
    zone.write_text("\n".join(records) + "\n")
    return _knot(folder, WILDCARD, zone)


def _knot(folder: Path, domain: str, zone: Path) -> Other | None:
    if not (program := shutil.which("knotd", path=_PATH)):
        return None
    port = ports.free_port(["127.0.0.1"])
    conf = folder / "knot.conf"
    conf.write_text(
        f"server:\n    rundir: {folder}\n    listen: 127.0.0.1@{port}\n"
        "    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n"
        f"log:\n  - target: stderr\n    any: warning\ndatabase:\n    storage: {folder}\n"
        "template:\n  - id: default\n    zonefile-sync: -1\n    zonefile-load: whole\n    journal-content: none\n"
        f"zone:\n  - domain: {domain}\n    file: {zone}\n"
    )
    return Other("knot", port, [program, "-c", str(conf)], [program, "--version"], folder / "log")


def unbound(folder: Path, upstream: int) -> Other | None:
    """Unbound with one thread that asks a port of 127.0.0.1 over TCP, and validates nothing; None if not installed."""
    if not (program := shutil.which("unbound", path=_PATH)):
        return None
    folder.mkdir()
    port = ports.free_port(["127.0.0.1"])
    conf = folder / "unbound.conf"
    conf.write_text(
        f"""\
server:
    directory: "{folder}"
    chroot: ""
    username: ""
    pidfile: ""
    use-syslog: no
    verbosity: 0
    num-threads: 1
    interface: 127.0.0.1@{port}
    module-config: "iterator"
    do-ip6: no
    do-not-query-localhost: no
    tcp-upstream: yes
    prefetch: no
    msg-cache-size: 128m
    rrset-cache-size: 256m
remote-control:
    control-enable: no
forward-zone:
    name: "."
    forward-addr: 127.0.0.1@{upstream}
"""
    )
    return Other("unbound", port, [program, "-d", "-p", "-c", str(conf)], [program, "-V"], folder / "log")


def dnsmasq(folder: Path, cluster: Cluster) -> Other | None:
    """dnsmasq with the address records in a hosts file; None if it is not installed."""
    if not (program := shutil.which("dnsmasq", path=_PATH)):
        return None
    folder.mkdir()
    port = ports.free_port(["127.0.0.1"])
    hosts = cluster.write_hosts(folder / "hosts")
    folder.chmod(0o755)
    options = ["--keep-in-foreground", "--conf-file=/dev/null", "--user=root", f"--port={port}", "--no-resolv"]
    options += ["--listen-address=127.0.0.1", "--bind-interfaces", "--no-hosts", f"--addn-hosts={hosts}"]
    options += [f"--local=/{ZONE}/", "--cache-size=10000", "--local-ttl=5", "--neg-ttl=5", "--pid-file="]
    return Other("dnsmasq", port, [program, *options], [program, "--version"], folder / "log")


def start(target: Target, prefix: Sequence[str], name: str, address: str) -> Startup:
    """Start a server and wait until it gives `address` for `name`, and until it says that it is ready."""
    begin = time.monotonic()
    target.start(prefix)
    answered: float | None = None
    ready: float | None = None
    tells = True
    query = dns.message.make_query(name, "A").to_wire()
    while answered is None or (ready is None and tells):
        if time.monotonic() - begin > START_SECONDS:
            raise RuntimeError(f"{target.name} is not ready after {START_SECONDS} s")
        if ready is None and tells:
            state = target.is_ready()
            tells = state is not None
            ready = time.monotonic() - begin if state else None
        if answered is None and _gives(target.port, query, address):
            answered = time.monotonic() - begin
        time.sleep(POLL_SECONDS)
    time.sleep(SETTLE_SECONDS)
    return Startup(answered, ready, memory(target))


def memory(target: Target) -> int:
    """PSS of all its processes in bytes."""
    return procs.pss(target.pids())


def _gives(port: int, query: bytes, address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.05)
        sock.connect(("127.0.0.1", port))
        try:
            sock.send(query)
            response = dns.message.from_wire(sock.recv(4096))
        except OSError:
            return False
    return response.rcode() == dns.rcode.NOERROR and [str(a) for rrset in response.answer for a in rrset] == [address]
