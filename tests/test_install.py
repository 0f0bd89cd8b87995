"""An install by the manifests, into an API server: the kdns that comes of it has these arguments, mounts and rights.

The objects are applied over HTTP, as an administrator does it, and read back by what stands for controllers and the
kubelet. Service accounts may do what the installed roles say. That kustomize and the chart make the same objects is
tested in test_deploy_manifests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.query
import pytest

from tests.conftest import require
from tests.support import deploy, objects, oci, procs, speed
from tests.support.cluster import Cluster, Running
from tests.support.install import Client
from tests.support.kubelet import ACCOUNT, Pod
from tests.support.netns import Netns
from tests.support.node import EXTERNAL, IPV4, ask
from tests.support.oci import Container
from tests.support.server import Metrics

TOOLS = "knotd", "iptables", "ip6tables", "conntrack", "curl", *oci.PROGRAMS
CLUSTER = deploy.files("cluster/rbac.yaml", "cluster/kdns.yaml")
NODE = deploy.files("node/node-local-dns.yaml")
USER = 53530
SERVICE_ACCOUNT = "system:serviceaccount:kube-system:kdns"
NET_BIND_SERVICE, NET_ADMIN = 1 << 10, 1 << 12
WATCHED = "Service", "EndpointSlice", "Namespace"
WEB = "10.96.1.1"
TTL = 7
RELOAD_SECONDS = 60.0
"""`reload` looks every 30 s, and a bit more or less."""
SOON = 10.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster's DNS, with as many pods as its autoscaler wants at least. Its ConfigMap has just been changed."""
    require(*TOOLS, *oci.missing())
    given = {("Service", "default", "web"): objects.service("web", ips=(WEB,))}
    with Cluster(tmp_path_factory.mktemp("install"), given) as made:
        admin = administrator(made)
        admin.install(CLUSTER.values())
        autoscaler = admin.get("HorizontalPodAutoscaler", "kube-system", "kdns")["spec"]
        assert autoscaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "kdns"}
        made.deploy(admin.get("Deployment", "kube-system", "kdns"), autoscaler["minReplicas"])
        made.wait_rolled_out()
        config = admin.get("ConfigMap", "kube-system", "kdns")
        config["data"]["Corefile"] = config["data"]["Corefile"].replace("ttl 30", f"ttl {TTL}")
        admin.put(config)
        for running in made.pods_running:
            running.pod.update_config_maps()
        yield made


@pytest.fixture(scope="module")
def node(cluster: Cluster) -> Iterator[Pod]:
    """The pod of the node's role."""
    admin = administrator(cluster)
    admin.install(NODE.values())
    cluster.settle()
    with cluster.daemon(admin.get("DaemonSet", "kube-system", "node-local-dns")) as pod:
        pod.wait_ready()
        yield pod


def administrator(cluster: Cluster) -> Client:
    return Client(cluster.api, namespace=cluster.control_plane)


def facts(pid: int) -> dict[str, list[str]]:
    """What the kernel says of a process (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def rights(container: Container) -> set[tuple[object, ...]]:
    """Of all processes: users and groups, the effective, bounding and ambient capabilities, whether there are no new
    privileges, and the seccomp mode, which is 2 for a filter."""
    found = set()
    for each in map(facts, container.pids()):
        ids = {*each["Uid"], *each["Gid"], *each["Groups"]}
        capabilities = [int(each[name][0], 16) for name in ("CapEff", "CapBnd", "CapAmb")]
        found.add((*sorted(ids), *capabilities, *each["NoNewPrivs"], *each["Seccomp"]))
    return found


def arguments(container: Container) -> list[str]:
    """The command line of the first process, from the program's name on."""
    words = Path(f"/proc/{container.pid}/cmdline").read_text().split("\0")[:-1]
    return words[words.index("/opt/kdns/bin/kdns") + 1 :]


def writable(container: Container) -> set[str]:
    """The mounts in which somebody with the container's rights can make files; the root has to be read-only."""
    found = [line.split() for line in container.run("cat", "/proc/mounts").stdout.splitlines()]
    points = [fields[1] for fields in found]
    assert "ro" in found[points.index("/")][3].split(",")
    script = 'for point; do ( : > "$point/.try" ) 2>/dev/null && rm "$point/.try" && echo "$point"; done; true'
    return set(container.run("sh", "-c", script, "sh", *points).stdout.split())


def mounts(pod: Pod) -> set[str]:
    """Where the volumes of its spec are."""
    return {mount["mountPath"] for mount in pod.spec_container["volumeMounts"]}


def scrape(where: Netns, url: str) -> Metrics:
    return Metrics(where.run("curl", "-sf", "--max-time", "5", url).stdout)


# The cluster's DNS


def test_pods_run_with_the_manifests_arguments_and_as_a_user_without_rights(cluster: Cluster) -> None:
    for running in cluster.pods_running:
        container = running.pod.container
        assert arguments(container) == ["serve", "--conf=/etc/kdns/Corefile"]
        assert len(container.pids()) >= 3  # supervisor, nursery, workers
        assert rights(container) == {(str(USER), 0, NET_BIND_SERVICE, 0, "1", "2")}


def test_pods_write_to_their_volumes_and_nowhere_else(cluster: Cluster) -> None:
    for running in cluster.pods_running:
        container = running.pod.container
        assert writable(container) == {"/var/lib/kdns", "/tmp", "/dev/shm", "/dev/mqueue"}  # noqa: S108
        assert {"/var/lib/kdns", "/tmp"} <= mounts(running.pod)  # noqa: S108
        assert container.written() == []
        state = running.pod.folder / "volume-state"
        assert "data.mdb" in {path.name for path in state.iterdir()}
        assert {path.stat().st_uid for path in state.iterdir()} == {USER}
        assert [*(running.pod.folder / "volume-tmp").iterdir()] == []


def test_pods_become_ready_and_are_the_services_endpoints(cluster: Cluster) -> None:
    found = administrator(cluster).get("EndpointSlice", "kube-system", "kube-dns-1")["endpoints"]
    ready = {"ready": True, "serving": True, "terminating": False}
    assert {each["addresses"][0]: each["conditions"] for each in found} == {
        running.address: ready for running in cluster.pods_running
    }
    assert [running.pod.restarts for running in cluster.pods_running] == [0, 0]


def test_pods_are_answered_at_the_cluster_ip(cluster: Cluster) -> None:
    for where in (*cluster.pods, cluster.node):
        assert ask(where, IPV4.cluster_ip, "web.default.svc.cluster.local") == WEB
        assert ask(where, IPV4.cluster_ip, "kube-dns.kube-system.svc.cluster.local") == IPV4.cluster_ip
        assert ask(where, IPV4.cluster_ip, "api.example.com") == EXTERNAL
    query = dns.message.make_query("web.default.svc.cluster.local", "A")
    answer = cluster.pods[0].inside(lambda: dns.query.tcp(query, IPV4.cluster_ip, timeout=5))
    assert [str(rdata) for rrset in answer.answer for rdata in rrset] == [WEB]


def test_a_service_that_is_installed_is_answered_by_every_pod(cluster: Cluster) -> None:
    made = administrator(cluster).apply(objects.service("new") | {"spec": {"ports": [{"port": 80}]}})
    address, name = made["spec"]["clusterIP"], "new.default.svc.cluster.local"
    for running in cluster.pods_running:
        procs.wait_until(lambda: ask(cluster.node, running.address, name) == address, SOON, name)  # noqa: B023


def test_pods_ask_the_api_server_with_their_own_token_for_what_the_role_allows(cluster: Cluster) -> None:
    asked = [request for request in cluster.api.requests() if request.agent != ""]
    assert {request.user for request in asked} == {SERVICE_ACCOUNT}
    assert {request.status for request in asked} == {200}
    mounted = cluster.pods_running[0].pod.container.run("cat", f"{ACCOUNT}/token")
    assert mounted.stdout == cluster.api.token


def test_metrics_are_scraped_where_the_service_says(cluster: Cluster) -> None:
    annotations = CLUSTER["Service", "kube-system", "kube-dns"]["metadata"]["annotations"]
    assert annotations == {"prometheus.io/scrape": "true", "prometheus.io/port": "9153"}
    for address in (IPV4.cluster_ip, *(running.address for running in cluster.pods_running)):
        assert scrape(cluster.pods[0], f"http://{address}:9153/metrics").value("coredns_build_info") == 1


@pytest.mark.parametrize("verb", ["watch", "list"])
def test_without_a_verb_of_the_role_every_pod_tells_and_answers_stay(cluster: Cluster, verb: str) -> None:
    """Lists are asked for as lists where the API server does not stream them."""
    admin = administrator(cluster)
    role = admin.get("ClusterRole", "", "kdns") | {"metadata": {"name": "kdns"}}
    less = role | {"rules": [rule | {"verbs": [one for one in rule["verbs"] if one != verb]} for rule in role["rules"]]}
    cluster.api.settings(streaming="invalid")
    before = refusals(cluster)
    admin.put(less)
    cluster.api.compact()
    cluster.api.break_watches()
    procs.wait_until(
        lambda: all(now > was for now, was in zip(refusals(cluster), before, strict=True)), 3 * SOON, "refusals", 0.2
    )
    assert all("is not allowed: " in running.pod.log for running in cluster.pods_running)
    assert ask(cluster.pods[0], IPV4.cluster_ip, "web.default.svc.cluster.local") == WEB
    admin.put(role)
    cluster.api.wait_watches(len(WATCHED) * len(cluster.pods_running), 3 * SOON)


def refusals(cluster: Cluster) -> list[float]:
    """How often each pod was refused each kind."""
    name = "kdns_kubernetes_watch_errors_total"
    scrapes = [scrape(cluster.node, f"http://{one.address}:9153/metrics") for one in cluster.pods_running]
    return [found.value(name, kind=kind, reason="forbidden") for found in scrapes for kind in WATCHED]


# The node's DNS


def test_the_nodes_pod_has_two_rights_its_arguments_and_no_token(cluster: Cluster, node: Pod) -> None:
    wanted = NODE["DaemonSet", "kube-system", "node-local-dns"]["spec"]["template"]["spec"]["containers"][0]["args"]
    both = NET_ADMIN | NET_BIND_SERVICE
    assert arguments(node.container) == ["node", *wanted]
    assert rights(node.container) == {("0", both, both, 0, "1", "2")}
    assert node.container.run("ls", ACCOUNT).returncode != 0
    assert writable(node.container) == {"/run/kdns", "/dev", "/dev/shm", "/dev/mqueue"}  # noqa: S108
    assert node.container.written() == []


def test_pods_have_the_speed_of_this_run(cluster: Cluster, node: Pod) -> None:
    for container in [node.container, *(running.pod.container for running in cluster.pods_running)]:
        assert json.loads(container.run("kdns", "version", "--json").stdout)["compiled"] is speed.meant()


def test_the_node_answers_at_both_addresses_and_asks_the_cluster_by_the_services_own(
    cluster: Cluster, node: Pod
) -> None:
    upstream = administrator(cluster).get("Service", "kube-system", "kube-dns-upstream")["spec"]["clusterIP"]
    assert f"forward . {upstream}" in (node.folder / "volume-run" / "Corefile").read_text()
    for address in IPV4.served:
        before = scrape(cluster.node, "http://127.0.0.1:9253/metrics").value("coredns_dns_requests_total")
        for pod in cluster.pods:
            assert ask(pod, address, "web.default.svc.cluster.local") == WEB
            assert ask(pod, address, "api.example.com") == EXTERNAL
        after = scrape(cluster.node, "http://127.0.0.1:9253/metrics").value("coredns_dns_requests_total")
        assert after - before == 4


def test_when_the_nodes_pod_is_gone_the_cluster_answers(cluster: Cluster, node: Pod) -> None:
    node.delete()
    assert node.wait_gone() == 0
    assert ask(cluster.pods[0], IPV4.cluster_ip, "web.default.svc.cluster.local") == WEB
    assert ask(cluster.pods[0], IPV4.local, "web.default.svc.cluster.local") is None


# What takes its time


def test_a_change_of_the_configmap_reaches_every_pod(cluster: Cluster) -> None:
    for running in cluster.pods_running:
        procs.wait_until(lambda: ttl(cluster, running) == TTL, RELOAD_SECONDS, "the new TTL", 0.1)  # noqa: B023
        assert (running.pod.ready, running.pod.restarts) == (True, 0)


def ttl(cluster: Cluster, running: Running) -> int:
    """What a pod's answers have."""
    query = dns.message.make_query("web.default.svc.cluster.local", "A")
    answer = cluster.node.inside(lambda: dns.query.udp(query, running.address, timeout=5))
    return answer.answer[0].ttl
