"""A node of a cluster in network namespaces: two pods, the node itself, the cluster's DNS behind Services, an upstream.

    pod 1 ──┐            ┌── cluster DNS (Unbound: cluster.local, and every name under `example`)
            ├── node ────┤
    pod 2 ──┘            └── upstream (Knot DNS: every name under `example`, and of all others OUTSIDE alone)

The node forwards between all of them with connection tracking and a strict reverse-path check. Services are what
kube-proxy's iptables mode makes of them: CLUSTER_IP and UPSTREAM_SERVICE lead to the cluster's DNS.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import dns.exception
import dns.message
import dns.query

from tests.support import procs, resolvers
from tests.support.lookups import Question
from tests.support.netns import Netns
from tests.support.proxy import Endpoint, Proxy, ServicePort
from tests.support.server import ROOT, Metrics

READY_SECONDS = 30.0
STOP_SECONDS = 20.0
LINK = "nodelocaldns"
SERVICES, NAMES = 20, 20
TTL = 5
"""Seconds, of what the cluster's DNS has."""
CLUSTER_ANSWER = "192.0.2.1"
"""What the cluster's DNS says to MARKER; what an instance on the node says is its own."""
MARKER = "marker.test"
EXTERNAL, EXTERNAL6 = "192.0.2.80", "2001:db8::80"
"""The addresses of every name under `example`."""
OUTSIDE = "example.com", "api.example.com"
"""Names with the same addresses that the upstream has."""
NODE_LOCAL = """\
__PILLAR__DNS__DOMAIN__:53 {
    errors
    cache {
            success 9984 30
            denial 9984 5
    }
    reload
    loop
    bind __PILLAR__LOCAL__DNS__ __PILLAR__DNS__SERVER__
    forward . __PILLAR__CLUSTER__DNS__ {
            force_tcp
    }
    prometheus :9253
    health __PILLAR__LOCAL__DNS__:8080
    }
in-addr.arpa:53 {
    errors
    cache 30
    reload
    loop
    bind __PILLAR__LOCAL__DNS__ __PILLAR__DNS__SERVER__
    forward . __PILLAR__CLUSTER__DNS__ {
            force_tcp
    }
    prometheus :9253
    }
ip6.arpa:53 {
    errors
    cache 30
    reload
    loop
    bind __PILLAR__LOCAL__DNS__ __PILLAR__DNS__SERVER__
    forward . __PILLAR__CLUSTER__DNS__ {
            force_tcp
    }
    prometheus :9253
    }
.:53 {
    errors
    cache 30
    reload
    loop
    bind __PILLAR__LOCAL__DNS__ __PILLAR__DNS__SERVER__
    forward . __PILLAR__UPSTREAM__SERVERS__
    prometheus :9253
    }
"""
"""What `nodelocaldns.yaml` of Kubernetes 1.33 has; its variables are replaced before anything reads it."""
MARKED = """\
$marker:53 {
    hosts {
        $answer $marker
    }
    bind __PILLAR__LOCAL__DNS__ __PILLAR__DNS__SERVER__
}
"""
"""A block that tells instances apart: $answer."""


@dataclass(frozen=True, slots=True)
class Family:
    """Addresses of one IP version."""

    cluster_ip: str
    local: str
    upstream_service: str
    pods: tuple[tuple[str, str], ...]
    cluster_dns: tuple[str, str]
    upstream: tuple[str, str]
    prefix: int
    iptables: str
    health: str

    @property
    def served(self) -> tuple[str, str]:
        """What a node-local instance answers at."""
        return self.local, self.cluster_ip


IPV4 = Family(
    cluster_ip="10.96.0.10",
    local="169.254.20.10",
    upstream_service="10.96.0.11",
    pods=(("10.244.1.1", "10.244.1.2"), ("10.244.2.1", "10.244.2.2")),
    cluster_dns=("10.244.53.1", "10.244.53.2"),
    upstream=("192.0.2.129", "192.0.2.130"),
    prefix=30,
    iptables="iptables",
    health="169.254.20.10:8080",
)
IPV6 = Family(
    cluster_ip="fd00:10:96::a",
    local="fd00:169:254:20::10",
    upstream_service="fd00:10:96::b",
    pods=(("fd00:10:244:1::1", "fd00:10:244:1::2"), ("fd00:10:244:2::1", "fd00:10:244:2::2")),
    cluster_dns=("fd00:10:244:53::1", "fd00:10:244:53::2"),
    upstream=("2001:db8:0:1::1", "2001:db8:0:1::2"),
    prefix=64,
    iptables="ip6tables",
    health="[fd00:169:254:20::10]:8080",
)
FAMILIES = IPV4, IPV6
"""In each pair the node's address comes first."""

QUESTIONS = [
    *(Question(f"service-{number}.default.svc.cluster.local") for number in range(SERVICES)),
    *(Question(f"www{number}.example") for number in range(NAMES)),
    *(Question(f"www{number}.example.default.svc.cluster.local", rcode=3) for number in range(NAMES)),
    *(Question("new-*.default.svc.cluster.local", rcode=3) for _ in range(4)),
    *(Question("new-*.example") for _ in range(4)),
]
"""What pods ask: mostly what a cache has, and one question in eight that it cannot have."""
QUESTIONS = [question for start in range(17) for question in QUESTIONS[start::17]]


def resolv_conf(nameserver: str) -> str:
    """As kubelet writes it for a pod of the namespace `default`."""
    return (
        f"search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver {nameserver}\noptions ndots:5\n"
    )


class Topology:
    """The namespaces and the two name servers; a context manager.

    Pods ask `family`'s ClusterIP (pod 1) and link-local address (pod 2). The resolv.conf of the node and the cluster's
    DNS names the upstream, as `dnsPolicy: Default` has it. servers: those to start; without "dns", whoever has port 53
    in `dns` is the cluster's.
    """

    def __init__(self, folder: Path, family: Family = IPV4, servers: Sequence[str] = ("dns", "upstream")) -> None:
        self.folder = folder
        self.family = family
        self.servers = servers
        self.pods = Netns("pod1", resolv_conf(family.cluster_ip)), Netns("pod2", resolv_conf(family.local))
        self.node = Netns("node", f"nameserver {family.upstream[1]}\n")
        self.dns = Netns("dns", f"nameserver {family.upstream[1]}\n")
        self.upstream = Netns("up")
        self._stack = contextlib.ExitStack()
        self._servers: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        with self._stack:
            for namespace in (self.node, *self.pods, self.dns, self.upstream):
                self._stack.enter_context(namespace)
            self._lay_links()
            self.proxy = Proxy(self.node)
            self.proxy.sync(self._services())
            self._stack.callback(self._stop_servers)
            for role in self.servers:
                self.start_server(role)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def _lay_links(self) -> None:
        for namespace in (self.node, *self.pods, self.dns, self.upstream):
            namespace.run("sysctl", "-q", "-w", "net.ipv6.conf.default.accept_dad=0")  # else IPv6 begins a second later
        for number, pod in enumerate(self.pods):
            self.attach(pod, *(family.pods[number] for family in FAMILIES))
        self.attach(self.dns, *(family.cluster_dns for family in FAMILIES))
        self.attach(self.upstream, *(family.upstream for family in FAMILIES))
        for family in FAMILIES:
            self.node.ip("route", "add", "default", "via", family.upstream[1])
        keys = ["ipv4.ip_forward", "ipv6.conf.all.forwarding", "ipv4.conf.all.rp_filter"]
        self.node.run("sysctl", "-q", "-w", *(f"net.{key}=1" for key in keys))

    def attach(self, namespace: Netns, *pairs: tuple[str, str]) -> None:
        """Lay a link from the node to a namespace: for IPv4 and IPv6 the node's address and the other's."""
        own = [f"{pair[0]}/{family.prefix}" for pair, family in zip(pairs, FAMILIES, strict=True)]
        theirs = [f"{pair[1]}/{family.prefix}" for pair, family in zip(pairs, FAMILIES, strict=True)]
        self.node.connect(namespace, own, theirs)
        for pair in pairs:
            namespace.ip("route", "add", "default", "via", pair[0])

    def _services(self) -> list[ServicePort]:
        """All lead to the cluster's DNS."""
        return [
            ServicePort(address, 53, protocol, (Endpoint(family.cluster_dns[1]),))
            for family in FAMILIES
            for address in (family.cluster_ip, family.upstream_service)
            for protocol in ("udp", "tcp")
        ]

    # The name servers

    def start_server(self, role: str) -> None:
        """Start "dns" or "upstream" (again), and wait until it answers."""
        folder = self.folder / role
        folder.mkdir(exist_ok=True)
        if role == "dns":
            conf, program, namespace, pair = _unbound_conf(folder), "unbound", self.dns, "cluster_dns"
            command = [resolvers.program(program) or program, "-d", "-p", "-c", str(conf)]
        else:
            conf, program, namespace, pair = _knot_conf(folder), "knotd", self.upstream, "upstream"
            command = [resolvers.program(program) or program, "-c", str(conf)]
        with (folder / "log").open("ab") as log:
            self._servers[role] = subprocess.Popen(
                [*namespace.prefix, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
            )
        address, name = getattr(IPV4, pair)[1], MARKER if role == "dns" else "www0.example"
        procs.wait_until(lambda: ask(self.node, address, name, 0.03) is not None, 10, f"{program} of {role}")

    def kill_server(self, role: str) -> None:
        """SIGKILL."""
        server = self._servers.pop(role)
        server.kill()
        server.wait()

    def _stop_servers(self) -> None:
        for role in list(self._servers):
            self.kill_server(role)

    def silence_upstream(self, silent: bool) -> None:
        """Drop all that comes to the upstream, or take it again."""
        for family in FAMILIES:
            program = shutil.which(f"{family.iptables}-legacy") or family.iptables
            self.upstream.run(program, "-w", "-A" if silent else "-D", "INPUT", "-j", "DROP")

    # What is seen of the node

    def answered_by(self, address: str, pod: int = 0) -> str | None:
        """Whose answer a pod gets at an address: CLUSTER_ANSWER, or an instance's `answer`; None if there is none."""
        return ask(self.pods[pod], address, MARKER)

    def tracked(self, address: str) -> list[str]:
        """Entries of the node's connection tracking whose original destination is an address' port 53."""
        lines = self.node.run("conntrack", "-L", "-f", "ipv6" if ":" in address else "ipv4").stdout.splitlines()
        return [line for line in lines if f"dst={address} " in line and "dport=53 " in line]

    def make_link(self) -> None:
        """The link that instances put addresses on, for kernels that have no dummy links; nothing if it is there."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.node.ip("link", "add", LINK, "type", "bridge")
            self.node.ip("link", "set", LINK, "up")

    def remove_link(self) -> None:
        """Nothing if it is not there."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.node.ip("link", "delete", LINK)


def ask(where: Netns, address: str, name: str, timeout: float = 0.3) -> str | None:
    """The first address that somebody in a namespace gets for a name, over UDP; None if no answer comes."""

    def lookup() -> str | None:
        query = dns.message.make_query(name, "A")
        with contextlib.suppress(OSError, dns.exception.DNSException):
            response = dns.query.udp(query, address, timeout=timeout)
            return next((str(rdata) for rrset in response.answer for rdata in rrset), None)
        return None

    return where.inside(lookup)


def _unbound_conf(folder: Path) -> Path:
    local = [f'"service-{n}.default.svc.cluster.local. {TTL} A 10.96.1.{n}"' for n in range(SERVICES)]
    local += [f'"service-{n}.default.svc.cluster.local. {TTL} AAAA fd00:10:96::1:{n:x}"' for n in range(SERVICES)]
    local += [f'"cluster.local. {TTL} SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 {TTL}"']
    local += [f'"example. 30 A {EXTERNAL}"', f'"example. 30 AAAA {EXTERNAL6}"']
    local += [f'"{MARKER}. 0 A {CLUSTER_ANSWER}"']
    data = "".join(f"    local-data: {record}\n" for record in local)
    conf = folder / "unbound.conf"
    conf.write_text(
        f"""\
server:
    directory: "{folder}"
    chroot: ""
    username: ""
    pidfile: ""
    use-syslog: no
    verbosity: 1
    num-threads: 1
    interface: 0.0.0.0
    interface: ::0
    access-control: 0.0.0.0/0 allow
    access-control: ::0/0 allow
    module-config: "iterator"
    so-reuseport: no
    incoming-num-tcp: 500
    local-zone: "." static
    local-zone: "cluster.local." static
    local-zone: "example." redirect
{data}remote-control:
    control-enable: no
"""
    )
    return conf


def _knot_conf(folder: Path) -> Path:
    zone, root = folder / "zone", folder / "root"
    apex = ["$TTL 3600", "@ SOA ns hostmaster 1 7200 1800 86400 60", "@ NS ns", f"ns A {IPV4.upstream[1]}"]
    records = ["$ORIGIN example.", *apex, f"* 30 A {EXTERNAL}", f"* 30 AAAA {EXTERNAL6}"]
    records += [f"{name} {ttl} A {EXTERNAL}" for name, ttl in (("*.short", 1), ("*.long", 300))]
    zone.write_text("\n".join(records) + "\n")
    records = ["$ORIGIN .", *apex, *(f"{name} 30 A {EXTERNAL}\n{name} 30 AAAA {EXTERNAL6}" for name in OUTSIDE)]
    root.write_text("\n".join(records) + "\n")
    conf = folder / "knot.conf"
    conf.write_text(
        f"server:\n    rundir: {folder}\n    listen: [0.0.0.0@53, ::@53]\n"
        "    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n"
        f"log:\n  - target: stderr\n    any: warning\ndatabase:\n    storage: {folder}\n"
        "template:\n  - id: default\n    zonefile-sync: -1\n    zonefile-load: whole\n    journal-content: none\n"
        f"zone:\n  - domain: example\n    file: {zone}\n  - domain: .\n    file: {root}\n"
    )
    return conf


class Cgroup:
    """A memory cgroup of its own, of version 1 or 2; a context manager. `available` says whether one can be made."""

    def __init__(self, name: str, limit: int | None = None) -> None:
        self.version = 1 if Path("/sys/fs/cgroup/memory/cgroup.procs").exists() else 2
        root = Path("/sys/fs/cgroup/memory" if self.version == 1 else "/sys/fs/cgroup")
        self.path = root / f"kdns-{os.getpid()}-{name}"
        self.limit = limit

    @staticmethod
    def available() -> bool:
        """True if this process may make one."""
        try:
            with Cgroup("try"):
                return True
        except OSError:
            return False

    def __enter__(self) -> Self:
        self.path.mkdir()
        try:
            self.usage()
            self.set_limit(self.limit)
        except OSError:
            self.path.rmdir()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        procs.kill(self.pids())
        procs.wait_until(lambda: not self.pids(), 10, f"an empty {self.path}")
        self.path.rmdir()

    @property
    def prefix(self) -> list[str]:
        """What to put before a command to run it in here."""
        return ["sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$@"', "sh"]

    def pids(self) -> list[int]:
        """Who is in here."""
        return [int(line) for line in (self.path / "cgroup.procs").read_text().split()]

    def set_limit(self, limit: int | None) -> None:
        """Bytes; None for no limit."""
        if self.version == 1:
            (self.path / "memory.limit_in_bytes").write_text(str(-1 if limit is None else limit))
        else:
            (self.path / "memory.max").write_text("max" if limit is None else str(limit))

    def usage(self) -> int:
        """Bytes in use, page cache included."""
        name = "memory.usage_in_bytes" if self.version == 1 else "memory.current"
        return int((self.path / name).read_text())

    def kills(self) -> int:
        """How many processes the OOM killer has killed in here."""
        text = (self.path / ("memory.oom_control" if self.version == 1 else "memory.events")).read_text()
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)

    def kill_by_oom(self, limit: int = 128 << 20, seconds: float = 20.0) -> None:
        """Set a limit in bytes, and let another process in here fill a file in memory, which counts for no process,
        until the OOM killer has killed somebody; then file and limit go.

        Raises AssertionError when nobody was killed.
        """
        before = self.kills()
        self.set_limit(max(limit, self.usage() + (8 << 20)))
        program = (
            "import os, time\nfile = os.memfd_create('hog')\nwhile os.write(file, bytes(2 << 20)): time.sleep(0.005)\n"
        )
        hog = subprocess.Popen([*self.prefix, sys.executable, "-S", "-c", program])
        try:
            procs.wait_until(lambda: self.kills() > before, seconds, "a kill by the OOM killer", 0.0005)
            assert hog.poll() is None, "the OOM killer chose the process that filled the memory"
        finally:
            hog.kill()
            self.set_limit(None)
            hog.wait()


class Instance:
    """A node-local DNS server in the node's namespace, with the flags of NodeLocal DNSCache.

    folder: its files. number: which of several (2 to 99), told by its answer to MARKER. program: the command that the
    flags follow; None for `kdns node`. make_link: the link is made before it is started. makes_dummy: when its link is
    gone it makes another, or would if this kernel had dummy links. options: more flags. cache: the last block's.
    """

    def __init__(
        self,
        topology: Topology,
        folder: Path,
        number: int = 2,
        *,
        program: Sequence[str] | None = None,
        options: Sequence[str] = (),
        cache: str = "cache 30",
        make_link: bool = True,
        makes_dummy: bool = False,
        cgroup: Cgroup | None = None,
    ) -> None:
        self.topology = topology
        self.family = topology.family
        self.folder = folder
        self.number = number
        self.answer = f"192.0.2.{number}"
        self.program = list(program or [sys.executable, "-m", "kdns", "node"])
        self.options = list(options)
        self.make_link = make_link
        self.makes_dummy = makes_dummy
        self.cgroup = cgroup
        self.process: subprocess.Popen[bytes] | None = None
        self.leaders: list[int] = []
        folder.mkdir(parents=True)
        self.write_corefile(cache)

    # What it reads

    def write_corefile(self, cache: str = "cache 30") -> None:
        """Write the base file (again)."""
        before, root, rest = NODE_LOCAL.rpartition(".:53 {")
        text = before + root + rest.replace("cache 30", cache)
        text = text.replace("health __PILLAR__LOCAL__DNS__:8080", f"health {self.family.health}")
        text = text.replace("__PILLAR__DNS__DOMAIN__", "cluster.local")  # as the installer does
        text += MARKED.replace("$marker", MARKER).replace("$answer", self.answer)
        temporary = self.folder / ".Corefile.base"
        temporary.write_text(text)
        temporary.replace(self.folder / "Corefile.base")

    def command(self) -> list[str]:
        """The command line."""
        flags = {
            "-localip": ",".join(self.family.served),
            "-basecorefile": str(self.folder / "Corefile.base"),
            "-conf": str(self.folder / "Corefile"),
            "-pidfile": str(self.folder / "pid"),
            "-upstreamsvc": "kube-dns-upstream",
        }
        prefix = [*(self.cgroup.prefix if self.cgroup else []), *self.topology.node.prefix]
        return [*prefix, *self.program, *(part for flag in flags.items() for part in flag), *self.options]

    # Its life

    def start(self, *, wait: bool = True) -> Self:
        """Start it (again) in a session of its own, and wait until pods are answered by it."""
        if self.make_link:
            self.topology.make_link()
        (self.folder / "pid").unlink(missing_ok=True)
        environ = os.environ | {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "KUBE_DNS_UPSTREAM_SERVICE_HOST": self.family.upstream_service,
        }
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
        self.leaders.append(self.process.pid)
        if wait:
            self.wait_serving()
        return self

    def wait_serving(self, seconds: float = READY_SECONDS) -> float:
        """Wait until it is this instance that answers at all of its addresses; returns the seconds."""

        def serving() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.log}"
            return all(self.topology.answered_by(address) == self.answer for address in self.family.served)

        try:
            return procs.wait_until(serving, seconds, f"{self.program} to answer at {self.family.served}", 0.01)
        except AssertionError as error:
            raise AssertionError(f"{error}\nlog:\n{self.log}") from None

    def terminate(self, seconds: float = STOP_SECONDS) -> float:
        """SIGTERM, and wait for the end; returns the seconds."""
        assert self.process is not None
        begun = time.monotonic()
        self.process.terminate()
        self.process.wait(seconds)
        return time.monotonic() - begun

    def stop(self) -> None:
        """SIGTERM if it still runs, and no process of it is left."""
        try:
            if self.process is not None and self.process.poll() is None:
                self.terminate()
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL to every process of it, the supervisor first, and wait until all are gone."""
        for leader in self.leaders:
            while left := [found.pid for found in procs.session(leader)]:
                procs.kill(left)
                time.sleep(0.001)
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
            error.add_note(f"log of instance {self.number}:\n{self.log[-4000:]}")

    # Its processes

    def pids(self) -> list[int]:
        """All processes of every start that are still there."""
        return [found.pid for leader in self.leaders for found in procs.session(leader)]

    def supervisor(self) -> int:
        """The process that was started last."""
        return self.leaders[-1]

    def nursery(self) -> int | None:
        """The supervisor's child; None while there is none, or in a program that has none."""
        return next((found.pid for found in procs.session(self.leaders[-1]) if found.parent == self.leaders[-1]), None)

    def workers(self) -> list[int]:
        """The nursery's children."""
        nursery = self.nursery()
        return [found.pid for found in procs.session(self.leaders[-1]) if found.parent == nursery and nursery]

    def send(self, pid: int | None, number: signal.Signals = signal.SIGKILL) -> None:
        """A signal to one process."""
        assert pid is not None, f"no such process:\n{self.log}"
        os.kill(pid, number)

    @property
    def log_path(self) -> Path:
        return self.folder / "log"

    @property
    def log(self) -> str:
        """All that it wrote to standard output and error, from every start."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def metrics(self, port: int = 9253) -> Metrics:
        """Scrape it, from within the node."""
        return Metrics(self.topology.node.run("curl", "-s", f"http://127.0.0.1:{port}/metrics").stdout)
