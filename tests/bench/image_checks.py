"""What has to hold of a built image: what is in it, and how it runs as the manifests say."""

from __future__ import annotations

import dataclasses
import signal
import struct
import tomllib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import dns.message
import dns.query

from kdns import __version__
from kdns.cli import app
from tests.support import deploy, image, kubelet, procs
from tests.support.cluster import Cluster
from tests.support.image import Built, Content
from tests.support.netns import Netns
from tests.support.node import EXTERNAL, IPV4, ask
from tests.support.objects import Object, service
from tests.support.oci import Container, Image, Mount, Security
from tests.support.server import ROOT

DEPLOYMENT = "Deployment", "kube-system", "kdns"
DAEMON_SET = "DaemonSet", "kube-system", "node-local-dns"
ADD_ON = ROOT / "tests/fixtures/nodelocaldns.yaml"
INSTALLER = {
    "__PILLAR__LOCAL__DNS__": IPV4.local,
    "__PILLAR__DNS__SERVER__": IPV4.cluster_ip,
    "__PILLAR__DNS__DOMAIN__": "cluster.local",
}
"""What the add-on's installer puts in the place of words (kube-proxy in iptables mode)."""
NET_BIND_SERVICE, NET_ADMIN = 1 << 10, 1 << 12
SERVICE, ADDRESS = "web.default.svc.cluster.local", "10.96.1.80"
ANSWER_SECONDS = 20.0
_LONGEST = 3000
_UNCHECKED = 0b01
"""The flags of bytecode that is not compared with its source (PEP 552)."""


@dataclass(frozen=True, slots=True)
class Check:
    """Something that has to hold. fault: how it does not; "" if it does."""

    name: str
    fault: str


def check(name: str, work: Callable[[], None]) -> Check:
    """Do something that must not raise."""
    try:
        work()
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1].line
        return Check(name, f"{type(error).__name__}: {str(error) or line}"[:_LONGEST])
    return Check(name, "")


# What is in it


def of_files(source: Path, built: Built, again: Built, unpacked: Image, found: Content) -> list[Check]:
    """Those that need nothing but the files. source: what was built."""
    root = unpacked.root
    [packages] = (root / "opt/kdns/lib").glob("python3.*/site-packages")

    def listed() -> None:
        debian, python = image.listed(root)
        for mine, theirs in ((debian, found.debian), (python, found.python)):
            assert mine == theirs, f"listed or there: {sorted(mine.items() ^ theirs.items())}"

    def complete() -> None:
        setuptools = tomllib.loads((source / "pyproject.toml").read_text())["tool"]["setuptools"]
        wanted = {str(path.relative_to(source)) for path in (source / "kdns").rglob("*.py")}
        for package, patterns in setuptools["package-data"].items():
            for pattern in patterns:
                there = [*(source / package.replace(".", "/")).glob(pattern)]
                assert there, f"{package} has no {pattern}"
                wanted |= {str(path.relative_to(source)) for path in there}
        absent = sorted(path for path in wanted if not (packages / path).is_file())
        assert absent == [], absent

    def agree() -> None:
        assert built.id == again.id, f"different: {image.differences(built, again)}"

    def owned() -> None:
        assert found.unowned == (), found.unowned

    def compiled() -> None:
        folders = [packages, root / "usr/lib/python3.13"]
        missing = [
            str(path)
            for folder in folders
            for path in folder.rglob("*.py")
            if not (bytecode := Path(path.parent, "__pycache__", f"{path.stem}.cpython-313.pyc")).exists()
            or struct.unpack_from("<I", bytecode.read_bytes(), 4)[0] != _UNCHECKED
        ]
        assert missing == [], missing

    def machine_code() -> None:
        wanted = {path.relative_to(source).with_suffix("") for path in (source / "kdns").rglob("*.pxd")}
        there = {Path(str(path.relative_to(packages)).partition(".")[0]) for path in (packages / "kdns").rglob("*.so")}
        assert there == wanted, there ^ wanted
        left = [str(path) for ending in ("pxd", "c", "pyx") for path in (packages / "kdns").rglob(f"*.{ending}")]
        left += [str(path) for name in ("gcc*", "cc", "x86_64-linux-gnu-gcc*") for path in root.glob(f"usr/bin/{name}")]
        assert left == [], left

    def configured() -> None:
        config = unpacked.config
        assert (config["User"], config["StopSignal"]) == ("53530:53530", "SIGTERM")
        assert "Volumes" not in config
        assert config["Labels"]["org.opencontainers.image.version"] == __version__

    def without_pip() -> None:
        assert not found.python.keys() & {"pip", "setuptools", "wheel", "cython"}
        assert list(root.rglob("pip")) == []

    return [
        check("two builds have the same digest", agree),
        check("kdns is complete, with the files that it reads", complete),
        check("the SBOM lists the packages that are there, and no others", listed),
        check("each file of our layers belongs to a package, or is known", owned),
        check("all bytecode is there, and is used whatever times its sources have", compiled),
        check("what compiles is compiled, and what that takes is not there", machine_code),
        check("user, signal and version", configured),
        check("nothing that installs packages", without_pip),
    ]


# How it runs


def of_runs(unpacked: Image, folder: Path) -> list[Check]:
    """Those that start it: by itself, and in a cluster of a node, its pods and an API server."""
    checks = [
        check("commands, in a root that is read-only", lambda: _commands(unpacked, folder / "commands")),
        check("as a container engine runs it, with the image's own user and command", lambda: _alone(unpacked, folder)),
    ]
    given = deploy.files("cluster/rbac.yaml", "cluster/kdns.yaml", "node/node-local-dns.yaml")
    given["Service", "kube-system", "kube-dns-upstream"]["spec"]["clusterIP"] = IPV4.upstream_service
    given["Service", "default", "web"] = service("web", ips=(ADDRESS,))
    with Cluster(folder / "cluster", given) as cluster:
        cluster.machine.image = unpacked
        cluster.deploy(given[DEPLOYMENT], replicas=2)
        rolled_out = check("the Deployment's pods start and become ready", lambda: _rolled_out(cluster))
        checks.append(rolled_out)
        if rolled_out.fault:
            return checks
        template = given[DAEMON_SET]["spec"]["template"]
        checks += [
            check("the Deployment's pods answer behind the Service", lambda: _served(cluster)),
            check(
                "they are user 53530 without any capability, write nowhere else, and log no error",
                lambda: _bare(cluster),
            ),
            check("a kubeconfig is read in the container", lambda: _kubeconfig(cluster)),
            check("one that is killed answers again from its state directory", lambda: _killed(cluster)),
            check(
                "the DaemonSet's pod answers in the place of the Service, with two capabilities",
                lambda: _node(cluster, template),
            ),
        ]
        checks.append(check("the NodeLocal add-on's DaemonSet runs it as root", lambda: _add_on(cluster)))
    return checks


def _commands(unpacked: Image, folder: Path) -> None:
    place = folder / "tmp"
    place.mkdir(parents=True)
    place.chmod(0o1777)
    security = Security(capabilities=(), no_new_privileges=True, read_only=True)
    mounts = [Mount(place, "/tmp")]  # noqa: S108
    with (
        Netns("commands") as netns,
        Container(unpacked, folder / "container", netns, args=["demo"], mounts=mounts, security=security) as container,
    ):
        container.start()
        query = ["kdns", "query", "web.shop.svc.cluster.local", "--port", "5300"]
        procs.wait_until(lambda: "10.96.20.1" in container.run(*query).stdout, ANSWER_SECONDS, "an answer", 0.2)
        for command in app.registered_commands:
            assert command.callback is not None
            done = container.run("kdns", command.callback.__name__, "--help")
            assert (done.returncode, done.stderr) == (0, ""), done
        version = container.run("kdns", "version").stdout
        assert f"kdns      {__version__}" in version
        assert "CPython 3.13" in version
        assert "compiled  yes" in version
        sample = "/opt/kdns/lib/python3.13/site-packages/kdns/cli/sample"
        for words, shown in (
            (f"records --manifests {sample}", "web.shop.svc.cluster.local."),
            (f"explain web --namespace shop --manifests {sample}", "web.shop.svc.cluster.local"),
            (f"compare 127.0.0.1:5300 127.0.0.1:5300 --manifests {sample}", "no difference"),
            ("top http://127.0.0.1:5303/metrics --once", "kdns"),
            (f"check {sample}/Corefile", "no mistakes"),
            (f"migrate {sample}/Corefile --output /tmp/made", "written: /tmp/made/cluster/deployment.yaml"),
        ):
            done = container.run("kdns", *words.split())
            assert done.returncode in (0, 3), done  # 3: something differs, says migrate
            assert shown in done.stdout + done.stderr, done
        assert container.terminate() == 0
        assert container.written() == []


def _alone(unpacked: Image, folder: Path) -> None:
    """With what container engines give unasked: capabilities, a root that can be written, port 53 for everybody."""
    config = folder / "Corefile"
    config.write_text(f".:53 {{\n    hosts {{\n        {ADDRESS} {SERVICE}\n    }}\n}}\n")
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "0"}
    with (
        Netns("alone") as netns,
        Container(
            unpacked,
            folder / "alone",
            netns,
            mounts=[Mount(config, "/etc/kdns/Corefile", read_only=True)],
            security=Security(sysctls=sysctls),
        ) as container,
    ):
        container.start()
        procs.wait_until(lambda: ask(netns, "127.0.0.1", SERVICE) == ADDRESS, ANSWER_SECONDS, "an answer", 0.05)
        assert _facts(container)["Uid"] == {53530}
        assert container.terminate() == 0
        assert {str(Path(name).parent) for name in container.written()} == {"var/lib/kdns"}


def _rolled_out(cluster: Cluster) -> None:
    cluster.wait_rolled_out(ANSWER_SECONDS)


def _served(cluster: Cluster) -> None:
    for address in (IPV4.cluster_ip, IPV4.upstream_service):
        for where in (*cluster.pods, cluster.node):
            assert ask(where, address, SERVICE) == ADDRESS
            assert ask(where, address, "www1.example") == EXTERNAL
    message = dns.message.make_query(SERVICE, "A")
    answer = cluster.pods[0].inside(lambda: dns.query.tcp(message, IPV4.cluster_ip, timeout=5))
    assert [str(found) for rrset in answer.answer for found in rrset] == [ADDRESS]


def _bare(cluster: Cluster) -> None:
    assert len(cluster.pods_running) == 2
    for running in cluster.pods_running:
        container = running.pod.container
        facts = _facts(container)
        assert facts == _wanted(53530, effective=0, bounding=NET_BIND_SERVICE), facts
        _read_only(container)
        none = dataclasses.replace(container.security, capabilities=())
        _answers_with(none, container, running.namespace)
        assert (running.pod.restarts, "[ERROR]" in running.pod.log, "Traceback" in running.pod.log) == (0, False, False)


def _answers_with(security: Security, like: Container, netns: Netns) -> None:
    """The same container beside the first one, on another port, with other rights: it starts and answers."""
    folder = like.folder.with_name(f"{like.folder.name}-bare")
    config = folder.with_name(f"{folder.name}-Corefile")
    config.write_text(f".:54 {{\n    hosts {{\n        {ADDRESS} {SERVICE}\n    }}\n}}\n")
    mounts = [Mount(config, "/etc/kdns/Corefile", read_only=True)]
    state = ["--state-dir=/dev/shm/kdns"]
    with Container(
        like.image, folder, netns, command=like.command, args=state, mounts=mounts, security=security
    ) as container:
        container.start()
        query = ["kdns", "query", SERVICE, "--port", "54"]
        procs.wait_until(lambda: ADDRESS in container.run(*query).stdout, ANSWER_SECONDS, "an answer", 0.2)
        assert _facts(container)["CapBnd"] == {0}


def _kubeconfig(cluster: Cluster) -> None:
    """With authorities in it, which need a folder for temporary files."""
    pod = cluster.pods_running[0].pod
    path = cluster.api.kubeconfig(pod.folder / "volume-tmp/kubeconfig", user="token")
    path.chmod(0o644)
    done = pod.container.run("kdns", "records", "--kubeconfig", "/tmp/kubeconfig")  # noqa: S108
    assert (done.returncode, SERVICE in done.stdout) == (0, True), done.stderr


def _killed(cluster: Cluster) -> None:
    pod = cluster.pods_running[0].pod
    cluster.api.down()
    try:
        pod.signal(signal.SIGKILL)
        procs.wait_until(lambda: pod.restarts == 1 and pod.ready, ANSWER_SECONDS, f"its return; {pod.log}", 0.05)
        assert ask(cluster.node, pod.address, SERVICE) == ADDRESS
    finally:
        cluster.api.up()


def _node(cluster: Cluster, template: Object) -> None:
    with kubelet.Pod("node-local-dns", template, cluster.folder / "node-local", cluster.machine) as pod:
        pod.wait_ready()
        for address in IPV4.served:
            for where in (*cluster.pods, cluster.node):
                assert ask(where, address, SERVICE) == ADDRESS
                assert ask(where, address, "www1.example") == EXTERNAL
        assert "flags owner" in cluster.node.run("nft", "list", "ruleset").stdout
        both = NET_ADMIN | NET_BIND_SERVICE
        assert _facts(pod.container) == _wanted(0, effective=both, bounding=both)
        _read_only(pod.container)
        assert (pod.restarts, "[ERROR]" in pod.log, "Traceback" in pod.log) == (0, False, False), pod.log
        pod.delete()
        assert pod.wait_gone() == 0
    assert ask(cluster.pods[0], IPV4.cluster_ip, SERVICE) == ADDRESS


def _add_on(cluster: Cluster) -> None:
    """With the image, `command: [kdns, node]` and `runAsUser: 0` in it."""
    text = ADD_ON.read_text()
    for word, by in INSTALLER.items():
        text = text.replace(word, by)
    [template] = [found["spec"]["template"] for key, found in deploy.objects(text).items() if key[0] == "DaemonSet"]
    template["spec"]["serviceAccountName"] = "node-local-dns"  # ours, of the same name
    [container] = template["spec"]["containers"]
    container["command"] = ["kdns", "node"]
    container["securityContext"] |= {"runAsUser": 0}
    with kubelet.Pod("node-local-dns-add-on", template, cluster.folder / "add-on", cluster.machine) as pod:
        pod.wait_ready()
        procs.wait_until(
            lambda: all(ask(cluster.pods[0], address, SERVICE) == ADDRESS for address in IPV4.served),
            ANSWER_SECONDS,
            f"answers; log:\n{pod.log}",
            0.1,
        )
        assert cluster.node.run("nft", "list", "ruleset").stdout.count("flags owner") == 1
        assert "[ERROR]" not in pod.log, pod.log
        pod.delete()
        assert pod.wait_gone() == 0


def _facts(container: Container) -> dict[str, set[int]]:
    """What the kernel says about all processes of a container (proc_pid_status(5))."""
    found: dict[str, set[int]] = {}
    for pid in container.pids():
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        for name in ("Uid", "Gid", "NoNewPrivs", "Seccomp"):
            found.setdefault(name, set()).update(map(int, fields[name].split()))
        for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
            found.setdefault(name, set()).add(int(fields[name], 16))
    return found


def _wanted(user: int, *, effective: int, bounding: int) -> dict[str, set[int]]:
    return {
        "Uid": {user},
        "Gid": {user},
        "NoNewPrivs": {1},
        "Seccomp": {2},
        "CapEff": {effective},
        "CapPrm": {effective},
        "CapBnd": {bounding},
        "CapInh": {0},
        "CapAmb": {0},
    }


def _read_only(container: Container) -> None:
    assert container.run("touch", "/opt/kdns/new").returncode == 1
    assert container.written() == []
