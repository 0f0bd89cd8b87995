"""The cluster's names over TLS and HTTPS: kdns beside Unbound, and beside proxies that answer from their caches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import dns.message
import dns.query
import httpx

from tests.bench import h2load, load, peers, queries, targets
from tests.bench.cluster import ZONE, Cluster
from tests.bench.load import Run
from tests.bench.peers import DNSDIST, KRESD, UNBOUND
from tests.bench.targets import AS_PYTHON, KDNS, PYTHON, Kdns, Other, Target
from tests.bench.workloads import DOH, DOH_FEW, DOH_POST, DOT, DOT_FEW, DOT_SHORT
from tests.support import ports
from tests.support.tls import Issued

PARTS = ("tls",)
SERVERS = (KDNS, PYTHON, UNBOUND, DNSDIST, KRESD)
WITH_DNSPERF: Mapping[str, Sequence[str]] = {
    DOT_FEW: ("-q", "10"),
    DOT: ("-q", "100"),
    DOT_SHORT: ("-c", "20", "-q", "20", "-O", "num-queries-per-conn=1"),
}
"""What is asked over TLS: options beside those of load.py, which keep one connection."""
WITH_H2LOAD: Mapping[str, tuple[str, Sequence[str]]] = {
    DOH_FEW: ("-i", ("-m", "10")),
    DOH: ("-i", ("-m", "100")),
    DOH_POST: ("-d", ("-m", "100")),
}
"""And over HTTPS: how h2load is told what to ask, in GET requests or in the body of a POST, and other options."""
_REFUSED = {(KRESD, DOH_POST)}
"""Of which most queries have no answer: Knot Resolver 5.6 ends the streams."""
_CACHED = 3600
"""TTL of the zone that proxies ask for, so that they have it."""

COREFILE = """\
.:$dns tls://.:{key.dot} https://.:{key.doh} {{
    bind 127.0.0.1
    errors
    ready 127.0.0.1:$ready
    prometheus 127.0.0.1:$metrics
    tls {key.certificate} {key.key}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        manifests $manifests
    }}
    loadbalance round_robin
}}
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure. seconds: of each run."""

    rounds: int
    seconds: int
    servers: Sequence[str]


FULL = Plan(rounds=5, seconds=3, servers=SERVERS)
SHORT = Plan(rounds=1, seconds=1, servers=(KDNS, UNBOUND, DNSDIST))


@dataclass(frozen=True, slots=True)
class Secured:
    """A server and its ports. asked: what h2load asks of it, by its option."""

    target: Target
    dot: int
    doh: int
    asked: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Figures:
    """All that was measured here. runs: by workload, then by server, one for each round."""

    versions: dict[str, str] = field(default_factory=dict)
    runs: dict[str, dict[str, list[Run]]] = field(default_factory=dict)


def measure(folder: Path, cluster: Cluster, plan: Plan, parts: Sequence[str], say: Callable[[str], None]) -> Figures:
    """Measure each workload on each server in turns. say: told what begins, and who is left out.

    Raises RuntimeError if a server or dnsperf fails.
    """
    found = Figures()
    if not parts:
        return found
    folder.mkdir()
    issued = Issued(folder)
    repeated = queries.write_repeated(folder / "repeated", cluster)
    with contextlib.ExitStack() as stack:
        servers = _start(folder, cluster, plan, repeated, stack, say)
        found.versions.update({server.target.name: server.target.version() for server in servers})
        workloads = (*WITH_DNSPERF, *WITH_H2LOAD)
        names = [server.target.name for server in servers]
        for workload in workloads:
            found.runs[workload] = {name: [] for name in names if (name, workload) not in _REFUSED}
        for server in servers:
            _check(server, issued, cluster)
            load.measure(server.target, repeated, ["-n", "2"])  # so that the proxies have all of it
        for number in range(plan.rounds):
            for workload in workloads:
                say(f"round {number + 1} of {plan.rounds}: {workload}")
                for server in servers if number % 2 == 0 else servers[::-1]:
                    if (server.target.name, workload) in _REFUSED:
                        continue
                    run = _ask(server, workload, repeated, plan.seconds)
                    found.runs[workload][server.target.name].append(run)
    return found


def _ask(server: Secured, workload: str, repeated: Path, seconds: int) -> Run:
    if workload in WITH_DNSPERF:
        options = ["-m", "dot", "-p", str(server.dot), "-l", str(seconds), *WITH_DNSPERF[workload]]
        return load.measure(server.target, repeated, options)
    kind, others = WITH_H2LOAD[workload]
    return h2load.measure(server.target, [*server.asked[kind], *others, "-D", str(seconds)])


def _check(server: Secured, issued: Issued, cluster: Cluster) -> None:
    """Ask once over TLS and once over HTTPS. Raises RuntimeError if the answer is another one than the Service has."""
    query = dns.message.make_query(cluster.service_names()[0], "A")
    over_tls = dns.query.tls(query, "127.0.0.1", 5, server.dot, ssl_context=issued.client(), server_hostname="dns.test")
    with httpx.Client(http2=True, verify=issued.client()) as client:
        url = f"https://127.0.0.1:{server.doh}{h2load.target(query.to_wire())}"
        found = client.get(url, extensions={"sni_hostname": "dns.test"})
    if found.status_code != HTTPStatus.OK:
        raise RuntimeError(f"{server.target.name} has no answer: {found.status_code} {found.text}")
    over_https = dns.message.from_wire(found.content)
    for response in (over_tls, over_https):
        if [str(address) for rrset in response.answer for address in rrset] != [cluster.address(0)]:
            raise RuntimeError(f"{server.target.name} has another answer:\n{response}")


def _start(
    folder: Path, cluster: Cluster, plan: Plan, repeated: Path, stack: contextlib.ExitStack, say: Callable[[str], None]
) -> list[Secured]:
    """Those servers that are installed. Without Knot there is nobody whom proxies could ask."""
    upstream = peers.knot(folder / "upstream", cluster, ttl=_CACHED)
    if upstream is not None:
        stack.callback(upstream.stop)
        targets.start_with(upstream, load.pinned(load.CLIENT_CPU), cluster)
    body = h2load.write_body(folder / "body", repeated)
    found = []
    for number, name in enumerate(plan.servers):
        dot, doh = ports.free_port(["127.0.0.1"]), ports.free_port(["127.0.0.1"])
        key = peers.Key(folder / "server.crt", folder / "server.key", dot, doh)
        target = _target(name, folder / str(number), cluster, key, upstream)
        if target is None:
            say(f"{name} is not installed, so it is left out")
            continue
        say(f"{name}: start")
        stack.callback(target.stop)
        targets.start_with(target, load.pinned(load.SERVER_CPU), cluster)
        uris = h2load.write_uris(folder / f"uris{number}", repeated, doh)
        found.append(Secured(target, dot, doh, {"-i": ["-i", str(uris)], "-d": _posted(body, doh)}))
    return found


def _posted(body: Path, port: int) -> list[str]:
    return ["-d", str(body), "-H", "content-type: application/dns-message", f"https://127.0.0.1:{port}/dns-query"]


def _target(name: str, folder: Path, cluster: Cluster, key: peers.Key, upstream: Other | None) -> Target | None:
    if name in (KDNS, PYTHON):
        corefile = COREFILE.format(key=key)
        target = Kdns(folder, corefile, name=name, environ=AS_PYTHON if name == PYTHON else {})
        cluster.write_json(folder / "manifests")
        return target
    if name == UNBOUND:
        return peers.unbound(folder, cluster, key)
    if upstream is None:
        return None
    maker = {DNSDIST: peers.dnsdist, KRESD: peers.kresd}[name]
    return maker(folder, ZONE, upstream.port, key)
