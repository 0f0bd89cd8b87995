"""kube-proxy on a node, in iptables mode: rules that lead Services to endpoints, and the end of UDP flows."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.support.netns import Netns

CHAIN = "KUBE-SERVICES"
PROGRAMS = "iptables", "ip6tables"
_REPLY = re.compile(r"src=\S+ dst=\S+ .*?src=(\S+) ")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """ready: its pod is ready and is not being deleted. serving: the same, whether it is being deleted or not."""

    address: str
    port: int = 53
    ready: bool = True
    serving: bool = True


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a Service. protocol: `udp` or `tcp`."""

    address: str
    port: int
    protocol: str
    endpoints: tuple[Endpoint, ...]

    def used(self) -> list[Endpoint]:
        """Those that new flows go to: the ready ones; without any, those that still serve while they end."""
        ready = [endpoint for endpoint in self.endpoints if endpoint.ready]
        return ready or [endpoint for endpoint in self.endpoints if endpoint.serving]


class Proxy:
    """Takes packets from pods and from the node itself. In the legacy tables where there are some, which `nft flush
    ruleset` leaves alone. Packets that conntrack takes for invalid are dropped, as kube-proxy has it."""

    def __init__(self, node: Netns) -> None:
        self.node = node
        self._programs = {False: _program(PROGRAMS[0]), True: _program(PROGRAMS[1])}
        for program in self._programs.values():
            for rule in (f"-N {CHAIN}", f"-A PREROUTING -j {CHAIN}", f"-A OUTPUT -j {CHAIN}"):
                node.run(program, "-w", "-t", "nat", *rule.split())
            for rule in (f"-N {CHAIN}", f"-A FORWARD -j {CHAIN}", f"-A OUTPUT -j {CHAIN}"):
                node.run(program, "-w", *rule.split())
            node.run(program, "-w", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")

    def sync(self, ports: Sequence[ServicePort]) -> None:
        """These are all Services there are: put the rules in place at once, then end flows to what no longer serves."""
        for ipv6, program in self._programs.items():
            own = [port for port in ports if (":" in port.address) == ipv6]
            text = "\n".join([*_nat(own), *_filter(own), ""])
            command = [*self.node.prefix, f"{program}-restore", "--noflush", "-w"]
            subprocess.run(command, input=text, text=True, check=True, capture_output=True)
        for port in ports:
            if port.protocol == "udp":
                self._end_stale(port)

    def _end_stale(self, port: ServicePort) -> None:
        """Remove the conntrack entries of flows to endpoints that do not serve; without one that does, of none."""
        serving = {endpoint.address for endpoint in port.endpoints if endpoint.serving}
        if not serving:
            return
        which = ["-f", "ipv6" if ":" in port.address else "ipv4", "-p", "udp", "--orig-dst", port.address]
        flows = self.node.run("conntrack", "-L", *which, "--dport", str(port.port)).stdout
        for stale in set(_REPLY.findall(flows)) - serving:
            # One may have timed out since: then none is there to be removed, and the exit code is 1.
            self.node.run("conntrack", "-D", *which, "--reply-src", stale, check=False)


def _program(name: str) -> str:
    return shutil.which(f"{name}-legacy") or name


def _nat(ports: Sequence[ServicePort]) -> Iterable[str]:
    """Each port has a chain that chooses one of its endpoints by chance."""
    yield "*nat"
    yield f":{CHAIN} - [0:0]"
    for number, port in enumerate(ports):
        chain = f"KUBE-SVC-{number}"
        yield f":{chain} - [0:0]"
        match = f"-d {port.address} -p {port.protocol} --dport {port.port}"
        used = port.used()
        if used:
            yield f"-A {CHAIN} {match} -j {chain}"
        for index, endpoint in enumerate(used):
            target = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
            left = len(used) - index
            chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
            dnat = f"-p {port.protocol} -j DNAT --to-destination {target}:{endpoint.port}"
            yield f"-A {chain} {chance}{dnat}"
    yield "COMMIT"


def _filter(ports: Sequence[ServicePort]) -> Iterable[str]:
    """What has no endpoints is refused."""
    yield "*filter"
    yield f":{CHAIN} - [0:0]"
    for port in ports:
        if not port.used():
            yield f"-A {CHAIN} -d {port.address} -p {port.protocol} --dport {port.port} -j REJECT"
    yield "COMMIT"
