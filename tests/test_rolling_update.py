"""The Deployment's pods are replaced one after the other while pods ask: nobody misses an answer.

The manifest's template runs in containers behind kube-proxy's rules. A pod asks at two addresses: at the ClusterIP,
which `kdns node` answers on its node, by the node's manifest, and which forwards to the Deployment over TCP that it
keeps open; and at a Service that leads to the Deployment itself, as all queries do in a cluster without node-local
DNS. It asks as glibc does, and besides with UDP queries that are sent once, from sockets of their own and from one
that is there all the time: each of them counts that gets no answer.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.conftest import Record, require
from tests.support import deploy, lookups, oci, procs
from tests.support.cluster import DELAY, Cluster
from tests.support.lookups import GLIBC, ONCE, SHARED, TCP, Asked, Client, Plan, Question
from tests.support.node import IPV4, OUTSIDE
from tests.support.objects import Object, service

TOOLS = "knotd", "iptables", "ip6tables", "conntrack", *oci.PROGRAMS
KDNS = "Deployment", "kube-system", "kdns"
NODE = "DaemonSet", "kube-system", "node-local-dns"
REPLICAS = 2
BOTH = [IPV4.cluster_ip, IPV4.upstream_service]
SERVICES = 20
QUESTIONS = [
    *(Question(f"web-{number}.default.svc.cluster.local") for number in range(SERVICES)),
    *(Question("new-*.default.svc.cluster.local", rcode=3) for _ in range(SERVICES // 4)),
    *(Question(name) for name in OUTSIDE),
]
LOAD = Plan(BOTH, QUESTIONS, once=250, glibc=150, shared=100, tcp=30, seconds=300)
"""Questions a second at each of the two addresses; those of glibc are two queries each: 1,300 over UDP in all."""
LESS = replace(LOAD, once=100, glibc=100, shared=0)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require(*TOOLS, *oci.missing())
    given = deploy.files("cluster/rbac.yaml", "cluster/kdns.yaml", "node/node-local-dns.yaml")
    given["Service", "kube-system", "kube-dns-upstream"]["spec"]["clusterIP"] = IPV4.upstream_service
    for number in range(SERVICES):
        name = f"web-{number}"
        given["Service", "default", name] = service(name, ips=(f"10.96.1.{number}", f"fd00:10:96:1::{number:x}"))
    with Cluster(tmp_path_factory.mktemp("rolling"), given) as made:
        made.deploy(given[KDNS], REPLICAS)
        made.wait_rolled_out()
        with made.daemon(given[NODE]) as node:
            node.wait_ready()
            yield made


def changed(cluster: Cluster, revision: str) -> Object:
    """The Deployment with another template, as `kubectl rollout restart` makes one."""
    found = cluster.api.find(*KDNS)
    found["spec"]["template"]["metadata"]["annotations"] = {"kubectl.kubernetes.io/restartedAt": revision}
    return found


def tell(record: Record, asked: list[Asked]) -> None:
    """Note what became of the questions of each kind at each address."""
    for address in BOTH:
        for kind in (ONCE, GLIBC, SHARED, TCP):
            found = lookups.figures(asked, kind, address)
            record(f"{address} {kind}", f"{len(found.missing)} of {found.sent} missing; gap {found.gap * 1000:.0f} ms")


def missing(asked: list[Asked], *kinds: str) -> list[tuple[str, str, float, str]]:
    """Address, kind, time and outcome of what got no right answer."""
    return [(one.who, one.kind, one.sent, one.outcome) for one in asked if one.kind in kinds and one.outcome != "ok"]


def test_an_update_of_all_pods_loses_no_query(cluster: Cluster, record: Record) -> None:
    before = {running.address for running in cluster.pods_running}
    with Client(cluster.pods[0], LOAD) as client:
        time.sleep(0.5)
        begun = time.monotonic()
        cluster.deploy(changed(cluster, "1"), REPLICAS)
        took = cluster.wait_rolled_out()
        time.sleep(0.5)
        asked = client.finish()
    record("seconds", took)
    tell(record, asked)
    assert before.isdisjoint(running.address for running in cluster.pods_running)
    assert missing(asked, ONCE, GLIBC, TCP) == []
    # What is on its way in the moment in which kube-proxy removes the flow's entry comes back from another address than
    # was asked: one query for each pod that goes, at most.
    assert len(missing(asked, SHARED)) <= REPLICAS
    assert sum(one.kind == ONCE and one.sent > begun for one in asked) > 100 * took
    assert lookups.figures(asked, GLIBC).slow == 0  # nor did anybody have to ask again


def test_a_template_that_does_not_start_and_the_way_back_lose_no_query(cluster: Cluster, record: Record) -> None:
    before = {running.pod.name for running in cluster.pods_running}
    current = cluster.current().found
    broken = changed(cluster, "2")
    broken["spec"]["template"]["spec"]["containers"][0]["args"] = ["--conf=/etc/kdns/Nowhere"]
    with Client(cluster.pods[0], LOAD) as client:
        cluster.deploy(broken, REPLICAS)
        procs.wait_until(lambda: any(running.pod.restarts for running in cluster.living()), 20, "a restart")
        assert {running.pod.name for running in cluster.living() if running.pod.ready} == before
        cluster.deploy(current, REPLICAS)
        cluster.wait_rolled_out()
        asked = client.finish()
    tell(record, asked)
    assert {running.pod.name for running in cluster.pods_running} == before
    assert missing(asked, ONCE, GLIBC, SHARED, TCP) == []


def test_a_pod_that_is_killed_in_an_update_costs_what_it_was_asked_until_it_is_back(
    cluster: Cluster, record: Record
) -> None:
    """The kubelet starts its container again, which answers from the store of the last one."""
    with Client(cluster.pods[0], LESS) as client:
        cluster.deploy(changed(cluster, "3"), REPLICAS)
        procs.wait_until(lambda: any(running.pod.deleted for running in cluster.pods_running), 60, "a pod that ends")
        time.sleep(2 * DELAY)  # then kube-proxy sends queries to the first new pod
        new = [running.pod for running in cluster.living() if running.revision == cluster.current().revision]
        victim = next(pod for pod in new if pod.ready)
        killed = time.monotonic()
        victim.signal(signal.SIGKILL)
        procs.wait_until(lambda: victim.restarts == 1 and victim.ready, 20, "its return")
        back = time.monotonic()
        cluster.wait_rolled_out()
        asked = client.finish()
    record("seconds until it was ready again", back - killed)
    tell(record, asked)
    assert "is served until the API server is heard" in victim.log
    lost = missing(asked, ONCE, GLIBC, TCP)
    moments = [(who, kind, sent - killed, outcome) for who, kind, sent, outcome in lost]
    assert [one for one in moments if not -0.1 < one[2] < back - killed] == [], (back - killed, moments)
    assert not [one for one in lost if one[:2] == (IPV4.cluster_ip, GLIBC)]  # the node asks again, over TCP
