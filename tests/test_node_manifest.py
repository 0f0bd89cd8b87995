"""Manifests of node-local DNS, run as kubelet would: their arguments, files and rights, in a node of namespaces."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from kdns.cli.node import understand
from kdns.node.configmap import KubeDns
from kdns.node.template import Values, fill
from kdns.plugins import bind
from tests.support import kubelet, netns, oci, procs
from tests.support.node import CLUSTER_ANSWER, EXTERNAL, IPV4, MARKER, READY_SECONDS, Topology, ask
from tests.support.server import ROOT, Metrics

ADD_ON = ROOT / "tests/fixtures/nodelocaldns.yaml"
OURS = ROOT / "deploy/kubernetes/node/node-local-dns.yaml"
INSTALLER = {
    "__PILLAR__LOCAL__DNS__": IPV4.local,
    "__PILLAR__DNS__SERVER__": IPV4.cluster_ip,
    "__PILLAR__DNS__DOMAIN__": "cluster.local",
}
"""What the add-on's installer puts in the place of words, in all of the manifest (kube-proxy in iptables mode)."""


class Manifest:
    """The objects of a file. replaced: words that an installer replaces."""

    def __init__(self, path: Path, replaced: Mapping[str, str]) -> None:
        text = path.read_text()
        for word, by in replaced.items():
            text = text.replace(word, by)
        self.objects: dict[tuple[str, str], Any] = {
            (found["kind"], found["metadata"]["name"]): found for found in yaml.safe_load_all(text)
        }
        self.spec = self.objects["DaemonSet", "node-local-dns"]["spec"]
        self.pod = self.spec["template"]["spec"]
        [self.container] = self.pod["containers"]

    def corefile(self) -> str:
        """The base file."""
        text = self.objects["ConfigMap", "node-local-dns"]["data"]["Corefile"]
        assert isinstance(text, str)
        return text


class Pod(kubelet.Pod):
    """The manifest's pod on the topology's node. kube_dns: that ConfigMap's keys."""

    def __init__(self, topology: Topology, folder: Path, manifest: Manifest, **kube_dns: Any) -> None:
        self.topology = topology
        self.manifest = manifest
        self.config_maps = {
            "kube-dns": {key: json.dumps(value) for key, value in kube_dns.items()},
            "node-local-dns": {"Corefile": manifest.corefile()},
        }
        template = manifest.spec["template"]
        container = {"command": ["kdns", "node"]} | manifest.container  # the add-on's has what its image says
        node = kubelet.Node(
            topology.node,
            lambda _, name: self.config_maps[name],
            environ=lambda: {"KUBE_DNS_UPSTREAM_SERVICE_HOST": IPV4.upstream_service},
            resolv_conf=f"nameserver {IPV4.upstream[1]}\n",
        )
        template = template | {"spec": template["spec"] | {"containers": [container]}}
        super().__init__("node-local-dns-1", template, folder, node)

    def wait_serving(self, seconds: float = READY_SECONDS) -> Self:
        """Wait until it is ready, and pods' queries to both addresses are counted by it."""
        self.wait_ready(seconds)
        procs.wait_until(lambda: all(map(self.answers, IPV4.served)), seconds, f"its answers; log:\n{self.log}", 0.05)
        return self

    def asked(self) -> float:
        """How many queries it has counted."""
        return self.metrics().value("coredns_dns_requests_total")

    def metrics(self, port: int = 9253) -> Metrics:
        """Nothing while nobody listens."""
        done = self.topology.node.run("curl", "-s", "--max-time", "3", f"http://127.0.0.1:{port}/metrics", check=False)
        return Metrics(done.stdout)

    def answers(self, address: str) -> bool:
        """Whether it is what answers pods there."""
        before = self.asked()
        found = ask(self.topology.pods[0], address, "service-1.default.svc.cluster.local")
        return found == "10.96.1.1" and self.asked() > before


@pytest.fixture
def topology(tmp_path: Path, needs: Any) -> Iterator[Topology]:
    needs("unbound", "knotd", "iptables", "ip6tables", "conntrack", "curl", "runc", *oci.missing())
    try:
        netns.require()
    except netns.NetnsUnavailableError as error:
        pytest.skip(str(error))
    with Topology(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    ("path", "replaced"), [pytest.param(ADD_ON, INSTALLER, id="the add-on's"), pytest.param(OURS, {}, id="ours")]
)
def test_a_node_is_served_by_the_manifests_arguments_files_and_rights(
    topology: Topology, tmp_path: Path, path: Path, replaced: dict[str, str]
) -> None:
    stubs = {MARKER: [IPV4.cluster_dns[1]]}
    with Pod(topology, tmp_path / "pod", Manifest(path, replaced), stubDomains=stubs) as pod:
        pod.wait_serving()
        topology.node.run("conntrack", "-F")  # what came before it served
        for address in IPV4.served:
            for where in (*topology.pods, topology.node):
                assert ask(where, address, "service-2.default.svc.cluster.local") == "10.96.1.2"
                assert ask(where, address, "www1.example") == EXTERNAL
                assert ask(where, address, MARKER) == CLUSTER_ANSWER
            assert topology.tracked(address) == []
        assert (pod.ready, pod.restarts) == (True, 0)
        errors = pod.metrics(9353).value("coredns_nodecache_setup_errors_total", errortype="configmap")
        assert (errors, "[ERROR]" in pod.log, "cannot be written" in pod.log) == (0, False, False)
        pod.delete()
        assert pod.wait_gone() == 0
        assert ask(topology.pods[0], IPV4.cluster_ip, "service-3.default.svc.cluster.local") == "10.96.1.3"
        assert ask(topology.pods[0], IPV4.local, "service-3.default.svc.cluster.local") is None


def blocks(manifest: Manifest, addresses: tuple[str, ...]) -> list[tuple[list[str], list[str], tuple[str, ...]]]:
    """Zones, plugins and addresses of what is served."""
    values = Values(addresses, 53, "cluster.local", "kube-dns-upstream", "10.96.0.11")
    config = understand(fill(manifest.corefile().encode(), "Corefile.base", values, KubeDns()), 53)
    return [
        ([key.zone for key in block.keys], list(block.plugins), block.plugins[bind.NAME].addresses({}))
        for block in config.blocks
    ]


@pytest.mark.parametrize("addresses", [(IPV4.local, IPV4.cluster_ip), ("fd00::10", "fd00:96::a"), (IPV4.local,)])
def test_the_add_ons_configmap_may_keep_its_variables(addresses: tuple[str, ...]) -> None:
    found = blocks(Manifest(ADD_ON, {}), addresses)
    assert [zones for zones, _, _ in found] == [["cluster.local."], ["in-addr.arpa."], ["ip6.arpa."], ["."]]
    assert {served for _, _, served in found} == {addresses}
    assert ["health" in plugins for _, plugins, _ in found] == [True, False, False, False]


def test_two_of_our_pods_fit_on_a_node_so_that_an_upgrade_can_overlap() -> None:
    manifest = Manifest(OURS, {})
    update = manifest.spec["updateStrategy"]["rollingUpdate"]
    assert (update["maxSurge"], update["maxUnavailable"], manifest.spec["minReadySeconds"]) == (1, 0, 10)
    assert manifest.pod["hostNetwork"]
    assert "ports" not in manifest.container


def test_our_pod_has_two_rights_and_a_limit_and_asks_no_api() -> None:
    manifest = Manifest(OURS, {})
    assert kubelet.security(manifest.pod, manifest.container).capabilities == ("NET_ADMIN", "NET_BIND_SERVICE")
    assert manifest.container["resources"]["limits"]["memory"] == "128Mi"
    assert manifest.objects["ServiceAccount", "node-local-dns"]["automountServiceAccountToken"] is False
    assert {kind for kind, _ in manifest.objects} == {"ServiceAccount", "Service", "ConfigMap", "DaemonSet"}


def test_the_parts_of_our_manifest_belong_together() -> None:
    manifest = Manifest(OURS, {})
    options = dict(argument.split("=") for argument in manifest.container["args"])
    kinds = [kind for kind, _ in manifest.objects]
    service = manifest.objects["Service", options["-upstreamsvc"]]
    assert kinds.index("Service") < kinds.index("DaemonSet")
    assert {(port["protocol"], port["port"]) for port in service["spec"]["ports"]} == {("UDP", 53), ("TCP", 53)}
    labels = manifest.spec["template"]["metadata"]["labels"]
    selector = manifest.spec["selector"]["matchLabels"]
    assert selector == manifest.objects["Service", "node-local-dns"]["spec"]["selector"]
    assert selector.items() <= labels.items()
    assert not service["spec"]["selector"].items() <= labels.items()
    assert {found["metadata"]["namespace"] for found in manifest.objects.values()} == {"kube-system"}
    assert {served for _, _, served in blocks(manifest, tuple(options["-localip"].split(",")))} == {IPV4.served[:2]}
    mounted = {mount["mountPath"] for mount in manifest.container["volumeMounts"]}
    assert {"/etc/coredns", "/etc/kube-dns", str(Path(options["-conf"]).parent)} <= mounted


def test_our_pod_runs_with_its_two_rights_and_writes_nowhere_else(topology: Topology, tmp_path: Path) -> None:
    with Pod(topology, tmp_path / "pod", Manifest(OURS, {})) as pod:
        pod.wait_serving()
        allowed = {(1 << 10) | (1 << 12)}  # CAP_NET_BIND_SERVICE, CAP_NET_ADMIN: linux/capability.h
        assert {_capabilities(pid) for pid in pod.container.pids()} == allowed
        written = tmp_path / "pod" / "volume-run" / "Corefile"
        assert f"bind {IPV4.local} {IPV4.cluster_ip}\n" in written.read_text()
        pod.config_maps["node-local-dns"]["Corefile"] = pod.manifest.corefile().replace("errors\n", "errors\n    any\n")
        pod.update_config_maps()
        before = pod.log
        pod.signal(signal.SIGHUP)
        procs.wait_until(lambda: " any\n" in written.read_text(), 10, "the new Corefile")
        assert pod.answers(IPV4.cluster_ip)
        assert [line for line in pod.log[len(before) :].splitlines() if "WARN" in line or "ERR" in line] == []


def _capabilities(pid: int) -> int:
    """A process's effective capabilities (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
