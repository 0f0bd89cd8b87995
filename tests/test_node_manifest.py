"""Manifests of node-local DNS, run as kubelet would: their arguments, files and rights, in a node of namespaces."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdns.cli.node import understand
from kdns.node.configmap import KubeDns
from kdns.node.template import Values, fill
from kdns.plugins import bind
from tests.support import netns, procs
from tests.support.node import CLUSTER_ANSWER, EXTERNAL, IPV4, MARKER, READY_SECONDS, Instance, Topology, ask
from tests.support.server import ROOT, Metrics
from tests.support.volume import Volume

ADD_ON = ROOT / "tests/fixtures/nodelocaldns.yaml"
OURS = ROOT / "deploy/kubernetes/node/node-local-dns.yaml"
INSTALLER = {
    "__PILLAR__LOCAL__DNS__": IPV4.local,
    "__PILLAR__DNS__SERVER__": IPV4.cluster_ip,
    "__PILLAR__DNS__DOMAIN__": "cluster.local",
}
"""What the add-on's installer puts in the place of words, in all of the manifest (kube-proxy in iptables mode)."""
USUAL = (
    "chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "net_bind_service", "net_raw",
    "sys_chroot", "mknod", "audit_write", "setfcap",
)  # fmt: skip
"""The capabilities that containers have if nobody says."""
MOUNT = """\
set -e
folder=$1; shift
mount --make-rprivate /
mount --rbind /run/netns "$folder/netns"
mount -t tmpfs none /run
mkdir /run/netns
mount --rbind "$folder/netns" /run/netns
mount --bind "$folder/etc" /etc
while read -r source target; do
    if [ -d "$source" ]; then mkdir -p "$target"; else touch "$target"; fi
    mount --bind "$source" "$target"
done < "$folder/mounts"
[ "$READ_ONLY" = no ] || mount -o remount,bind,ro /
exec "$@"
"""


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

    def capabilities(self) -> set[str]:
        """What the container may do."""
        said = self.container["securityContext"]["capabilities"]
        usual = set() if said.get("drop") == ["ALL"] else set(USUAL)
        return usual | {name.lower() for name in said["add"]}

    def corefile(self) -> str:
        """The base file."""
        text = self.objects["ConfigMap", "node-local-dns"]["data"]["Corefile"]
        assert isinstance(text, str)
        return text


class Pod(Instance):
    """The manifest's container on the topology's node. kube_dns: that ConfigMap's keys."""

    def __init__(self, topology: Topology, folder: Path, manifest: Manifest, **kube_dns: Any) -> None:
        self.manifest = manifest
        self.config_maps = {"kube-dns": kube_dns, "node-local-dns": {"Corefile": manifest.corefile()}}
        self.volumes: dict[str, Volume] = {}
        super().__init__(topology, folder, make_link=False)
        self._mount()

    def write_corefile(self, cache: str = "cache 30") -> None:
        """It has the manifest's."""

    def _mount(self) -> None:
        """Lay out the files that the container's mounts show, and a copy of /etc to mount them in."""
        for name in ("etc", "netns"):
            (self.folder / name).mkdir()
        for name in ("passwd", "group", "nsswitch.conf", "protocols", "services", "hosts", "resolv.conf"):
            source = Path("/etc") / name
            (self.folder / "etc" / name).write_bytes(source.read_bytes() if source.exists() else b"")
        own = Path("/etc/netns") / self.topology.node.name / "resolv.conf"
        copy = self.folder / "etc" / own.relative_to("/etc")
        copy.parent.mkdir(parents=True)
        copy.write_bytes(own.read_bytes())
        volumes = {volume["name"]: volume for volume in self.manifest.pod["volumes"]}
        mounts = [
            f"{self._source(volumes[mount['name']])} {mount['mountPath']}\n"
            for mount in self.manifest.container["volumeMounts"]
        ]
        (self.folder / "mounts").write_text("".join(mounts))

    def _source(self, volume: dict[str, Any]) -> Path:
        source = self.folder / f"volume-{volume['name']}"
        if "configMap" in volume:
            keys = self.config_maps[volume["configMap"]["name"]]
            paths = {item["key"]: item["path"] for item in volume["configMap"].get("items", [])}
            self.volumes[volume["name"]] = Volume(source, **{paths.get(key, key): keys[key] for key in keys})
        elif "hostPath" in volume:
            source.touch()
        else:
            source.mkdir()
        return source

    def command(self) -> list[str]:
        """As kubelet starts it, but for the program."""
        container = self.manifest.container
        allowed = ",".join(["-all", *(f"+{name}" for name in sorted(self.manifest.capabilities()))])
        rights = ["setpriv", f"--bounding-set={allowed}", "--inh-caps=-all"]
        read_only = "yes" if container["securityContext"].get("readOnlyRootFilesystem") else "no"
        mount = ["unshare", "--mount", "env", f"READ_ONLY={read_only}", "sh", "-c", MOUNT, "sh", str(self.folder)]
        program = [sys.executable, "-B", "-m", "kdns", "node"]
        return [*mount, *self.topology.node.prefix, *rights, *program, *container["args"]]

    def wait_serving(self, seconds: float = READY_SECONDS) -> float:
        """Wait until pods' queries to both addresses are counted by it."""

        def serving() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.log}"
            return all(self.answers(address) for address in self.family.served)

        try:
            return procs.wait_until(serving, seconds, "its answers", 0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}\nlog:\n{self.log}") from None

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
    needs("ip", "unbound", "knotd", "iptables", "ip6tables", "conntrack", "curl", "setpriv", "unshare")
    try:
        netns.require()
    except netns.NetnsUnavailableError as error:
        pytest.skip(str(error))
    with Topology(tmp_path) as made:
        yield made


def health(pod: Pod) -> str:
    """What the liveness probe gets."""
    probe = pod.manifest.container["livenessProbe"]["httpGet"]
    url = f"http://{probe['host']}:{probe['port']}{probe['path']}"
    command = ["curl", "-s", "--max-time", "1", "-o", "/dev/null", "-w", "%{http_code}", url]
    return pod.topology.node.run(*command, check=False).stdout


@pytest.mark.parametrize(
    ("path", "replaced"), [pytest.param(ADD_ON, INSTALLER, id="the add-on's"), pytest.param(OURS, {}, id="ours")]
)
def test_a_node_is_served_by_the_manifests_arguments_files_and_rights(
    topology: Topology, tmp_path: Path, path: Path, replaced: dict[str, str]
) -> None:
    stubs = {MARKER: [IPV4.cluster_dns[1]]}
    with Pod(topology, tmp_path / "pod", Manifest(path, replaced), stubDomains=stubs) as pod:
        topology.node.run("conntrack", "-F")  # what came before it served
        for address in IPV4.served:
            for where in (*topology.pods, topology.node):
                assert ask(where, address, "service-2.default.svc.cluster.local") == "10.96.1.2"
                assert ask(where, address, "www1.example") == EXTERNAL
                assert ask(where, address, MARKER) == CLUSTER_ANSWER
            assert topology.tracked(address) == []
        assert health(pod) == "200"
        errors = pod.metrics(9353).value("coredns_nodecache_setup_errors_total", errortype="configmap")
        assert (errors, "[ERROR]" in pod.log, "cannot be written" in pod.log) == (0, False, False)
        pod.terminate()
        assert health(pod) == "000"
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
    assert manifest.capabilities() == {"net_admin", "net_bind_service"}
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
        allowed = {(1 << 10) | (1 << 12)}  # CAP_NET_BIND_SERVICE, CAP_NET_ADMIN: linux/capability.h
        assert {_capabilities(pid) for pid in (pod.supervisor(), *pod.workers())} == allowed
        written = tmp_path / "pod" / "volume-run" / "Corefile"
        assert f"bind {IPV4.local} {IPV4.cluster_ip}\n" in written.read_text()
        pod.volumes["corefile"].write(
            **{"Corefile.base": pod.manifest.corefile().replace("errors\n", "errors\n    any\n")}
        )
        before = pod.log
        pod.send(pod.supervisor(), signal.SIGHUP)
        procs.wait_until(lambda: " any\n" in written.read_text(), 10, "the new Corefile")
        assert pod.answers(IPV4.cluster_ip)
        assert [line for line in pod.log[len(before) :].splitlines() if "WARN" in line or "ERR" in line] == []


def _capabilities(pid: int) -> int:
    """A process's effective capabilities (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
