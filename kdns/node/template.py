"""The node's Corefile: a base file with variables, and what the kube-dns ConfigMap adds to it.

The variables are those of NodeLocal DNSCache (`node-cache`):

* `__PILLAR__LOCAL__DNS__`: all addresses that queries come to; the first one alone before a colon and a port
* `__PILLAR__DNS__SERVER__`: nothing, because those addresses are all named already
* `__PILLAR__DNS__DOMAIN__`: the cluster's domain
* `__PILLAR__CLUSTER__DNS__`: the ClusterIP of the Service that is the cluster's DNS
* `__PILLAR__UPSTREAM__SERVERS__`: `upstreamNameservers`; without them `/etc/resolv.conf`

A block that has nothing but `force_tcp` behind `forward ZONE __PILLAR__UPSTREAM__SERVERS__` goes when there are
`upstreamNameservers`, as it is meant for those of the node. Lines keep their numbers, so that mistakes are found in the
base file. Each stub domain becomes a server block of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdns.corefile.parser import Part
from kdns.corefile.values import choices, ip_address, shown
from kdns.errors import ConfigError, Mistake
from kdns.node.configmap import STUB_DOMAINS, KubeDns, StubDomain

RESOLV_CONF = "/etc/resolv.conf"
REFUSED: Mapping[str, tuple[str, str]] = {
    "kubernetes": (
        "kubernetes has no place on a node: each node would follow all of the cluster",
        "secondary, for copies of the zones of the cluster's DNS, or forward, such as"
        " forward . __PILLAR__CLUSTER__DNS__",
    ),
    "k8s_external": (
        "k8s_external has no place on a node: it goes with kubernetes",
        "secondary, for copies of its zones, or forward to the cluster's DNS",
    ),
}
"""Directives that the Corefile of a node cannot have: why, and what is accepted instead."""

_LOCAL, _SERVER = "__PILLAR__LOCAL__DNS__", "__PILLAR__DNS__SERVER__"
_DOMAIN, _CLUSTER = "__PILLAR__DNS__DOMAIN__", "__PILLAR__CLUSTER__DNS__"
_UPSTREAM = "__PILLAR__UPSTREAM__SERVERS__"
_VARIABLE = re.compile(r"(?P<name>__PILLAR__[A-Z_]*?__)(?![A-Z_])(?P<port>:(?=\d))?")
_TCP_BLOCK = re.compile(rf"(forward[^\S\n]+\S+[^\S\n]+{_UPSTREAM})([^\S\n]*\{{\s*force_tcp\s*\}})")
_STUB = """\
{name}:{port} {{
    errors
    cache 30
    bind {addresses}
    forward . {nameservers}
}}
"""


@dataclass(frozen=True, slots=True)
class Values:
    """What the variables stand for.

    addresses: at least one. port: where stub domains are served. domain: the cluster's. service: the cluster's DNS.
    cluster_dns: its address; empty if there is none in the environment.
    """

    addresses: tuple[str, ...]
    port: int
    domain: str
    service: str
    cluster_dns: str


def service_variable(service: str) -> str:
    """Where a container finds a Service's ClusterIP: KUBE_DNS_SERVICE_HOST for kube-dns."""
    return f"{service.upper().replace('-', '_')}_SERVICE_HOST"


def fill(base: bytes, file: str, values: Values, kube_dns: KubeDns) -> list[Part]:
    """The Corefile of a base file and a ConfigMap. file: the base file's name.

    Raises ConfigError with every variable that has no value.
    """
    text = base.decode(errors="surrogateescape")
    if kube_dns.upstreams:
        text = _TCP_BLOCK.sub(lambda match: match[1] + "\n" * match[2].count("\n"), text)
    filler = _Filler(file, values, kube_dns.upstreams)
    lines = [filler.line(number, line) for number, line in enumerate(text.split("\n"), 1)]
    if filler.mistakes:
        raise ConfigError(filler.mistakes)
    filled = "\n".join(lines).encode(errors="surrogateescape")
    return [Part(filled, file), *(_stub(stub, values, kube_dns.folder) for stub in kube_dns.stub_domains)]


class _Filler:
    """Puts values in the place of variables, and notes those that have none."""

    def __init__(self, file: str, values: Values, upstreams: tuple[str, ...]) -> None:
        self.mistakes: list[Mistake] = []
        self._file = file
        self._values = values
        self._known = {
            _LOCAL: values.addresses,
            _SERVER: ("",),
            _DOMAIN: (values.domain,),
            _CLUSTER: (values.cluster_dns,) if values.cluster_dns else (),
            _UPSTREAM: upstreams or (RESOLV_CONF,),
        }

    def line(self, number: int, text: str) -> str:
        """A line of the base file; variables in its comment need not have a value."""
        comment = text.find("#")

        def value(match: re.Match[str]) -> str:
            found = self._known.get(match["name"], ())
            if not found and not 0 <= comment < match.start():
                self.mistakes.append(Mistake(self._file, number, *self._without_value(match["name"])))
            if not found:
                return match[0]
            if match["port"]:
                return f"[{found[0]}]:" if _is_ipv6(found[0]) else f"{found[0]}:"
            return " ".join(found)

        return _VARIABLE.sub(value, text)

    def _without_value(self, variable: str) -> tuple[str, str]:
        """What is wrong, and what would be accepted."""
        if variable != _CLUSTER:
            return f"{shown(variable)} is not known", choices(variable, self._known)
        service = self._values.service
        return (
            f"{variable} has no value: the environment variable {service_variable(service)} has no IP address",
            f"a Service {service} with a ClusterIP, older than this container and in its namespace",
        )


def _is_ipv6(text: str) -> bool:
    return ":" in text and ip_address(text) is not None


def _stub(stub: StubDomain, values: Values, folder: str) -> Part:
    """A stub domain's server block, in the line where the ConfigMap's file has its name."""
    text = _STUB.format(
        name=stub.name,
        port=values.port,
        addresses=" ".join(values.addresses),
        nameservers=" ".join(stub.nameservers),
    )
    return Part(text.encode(), str(Path(folder) / STUB_DOMAINS), stub.line)
