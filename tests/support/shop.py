"""A kdns at work, to be looked at: a web shop's cluster with its API server, an upstream that answers and one that does
not, and clients that ask at a steady pace, for what the search suffixes make of a name too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.apiserver import ApiServer
from tests.support.objects import Object, endpoint, endpoint_slice, external_name, namespace, service
from tests.support.pacer import Pacer
from tests.support.server import Server
from tests.support.upstream import ADDRESS, Asked, FakeUpstream, reply

COREFILE = """\
(common) {
    bind 127.0.0.1
    errors
    prometheus 127.0.0.1:$metrics {
        top_names 20
    }
}
.:$dns {
    import common
    health 127.0.0.1:$health
    ready 127.0.0.1:$ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        $kubernetes
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    cache 30
    $plugins
    loop
    loadbalance
    reload 2s 1s
}
corp.example:$dns {
    import common
    cache 30
    $corp
}
"""
NAMES = [
    *[("web.shop.svc.cluster.local", rdtype) for rdtype in ("A", "AAAA") for _ in range(6)],
    *[("cart.shop.svc.cluster.local", rdtype) for rdtype in ("A", "AAAA") for _ in range(4)],
    *[("db-0.db.data.svc.cluster.local", "A")] * 5,
    ("_postgres._tcp.db.data.svc.cluster.local", "SRV"),
    *[
        (f"api.payments.example.{suffix}", rdtype)
        for suffix in ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "")
        for rdtype in ("A", "AAAA")
        for _ in range(3)
    ],
    *[(f"images{number}.cdn.example", "A") for number in range(6)],
    ("10.0.96.10.in-addr.arpa", "PTR"),
    ("oldshop.example", "A"),
]
"""What is asked, in turn: half of it is not there."""


@dataclass(frozen=True, slots=True)
class Shop:
    """server: kdns. api: its API server. upstream: the one that answers; of the other one there is only the address."""

    server: Server
    api: ApiServer
    upstream: FakeUpstream
    gone: str

    def ask(self, rate: int, seconds: float) -> Pacer:
        """Clients that ask so many queries a second."""
        return Pacer(self.server.port, NAMES, rate=rate, seconds=seconds)


def cluster() -> Iterator[Object]:
    for name in ("shop", "data", "kube-system", "monitoring"):
        yield namespace(name)
    for number, (name, team) in enumerate(
        (name, team)
        for team, names in (
            ("shop", ("web", "cart", "search", "checkout", "images", "mail")),
            ("data", ("warehouse", "queue", "redis")),
            ("kube-system", ("metrics-server",)),
            ("monitoring", ("prometheus", "grafana", "alertmanager")),
        )
        for name in names
    ):
        yield service(name, team, ips=[f"10.96.20.{number + 1}"])
        pods = [endpoint(f"10.244.{index}.{number + 10}") for index in range(3)]
        yield endpoint_slice(name, pods, team)
    yield service("kube-dns", "kube-system", ips=["10.96.0.10"], ports=[("dns", 53, "UDP"), ("dns-tcp", 53)])
    yield service("db", "data", ips=(), ports=[("postgres", 5432)])
    members = [endpoint(f"10.244.{index}.31", hostname=f"db-{index}") for index in range(3)]
    yield endpoint_slice("db", members, "data", ports=[("postgres", 5432)])
    yield external_name("payments", "api.payments.example", "shop")


async def _answer(asked: Asked) -> None:
    if asked.name.startswith("oldshop"):
        asked.send(reply(asked, rcode="NXDOMAIN"))
    else:
        asked.send(reply(asked, *([f"A {ADDRESS}"] if asked.rdtype == "A" else []), ttl=20))


@contextlib.contextmanager
def shop(folder: Path, *, workers: int = 2, corefile: str = COREFILE) -> Iterator[Shop]:
    """Start it all; kdns is ready."""
    with (
        ApiServer(folder / "api") as api,
        FakeUpstream(_answer) as upstream,
        FakeUpstream(tcp=False, udp=False) as gone,
    ):
        api.load(cluster())
        server = Server(
            folder / "kdns",
            corefile=corefile.replace("$corp", f"forward . {gone.to} {upstream.to}"),
            kubernetes="kubeconfig kubeconfig",
            plugins=f"forward . {upstream.to}",
            workers=workers,
        )
        api.kubeconfig(server.folder / "kubeconfig")
        with server:
            yield Shop(server, api, upstream, gone.to)
            server.terminate()
