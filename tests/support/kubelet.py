"""What the kubelet makes of a Pod: volumes, environment, the container, its probes, and its end.

    pod = Pod(name, template, namespace, folder, node)
    pod.start()
    pod.wait_ready()
    pod.delete()      # SIGTERM now; what follows happens by itself

A pod has one container, which runc runs. Its image is the node's, else this machine's /usr and Python with the kdns of
this repository. Fields that are not known here are refused. Not done: files of other volumes than emptyDirs belong to
no fsGroup.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support import oci, procs, speed
from tests.support.netns import Netns
from tests.support.oci import Container, Image, Mount
from tests.support.server import ROOT
from tests.support.volume import Volume

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
READY_SECONDS = 60.0
BACK_OFF = 10.0
"""Seconds between a restart, which comes at once, and the next one. (kubelet doubles them each time.)"""
_TICK = 0.02
_UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "k": 1000, "M": 1000**2, "G": 1000**3}
_POD_FIELDS = {
    "serviceAccountName", "automountServiceAccountToken", "hostNetwork", "dnsPolicy", "terminationGracePeriodSeconds",
    "securityContext", "containers", "volumes", "enableServiceLinks",
    # What the scheduler and eviction read, and nobody else.
    "priorityClassName", "nodeSelector", "tolerations", "affinity", "topologySpreadConstraints",
}  # fmt: skip
_CONTAINER_FIELDS = {
    "name", "image", "imagePullPolicy", "command", "args", "env", "ports", "resources", "securityContext",
    "startupProbe", "livenessProbe", "readinessProbe", "volumeMounts",
}  # fmt: skip
_POD_SECURITY = {"runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "seccompProfile", "sysctls"}
_CONTAINER_SECURITY = {
    "runAsNonRoot", "runAsUser", "runAsGroup", "allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities",
    "seccompProfile", "privileged",
}  # fmt: skip
_PROBE = {
    "httpGet", "exec", "initialDelaySeconds", "periodSeconds", "timeoutSeconds", "successThreshold", "failureThreshold",
}  # fmt: skip
_VENV = Path("/opt/venv")
_ETC = "ld.so.cache", "nsswitch.conf", "protocols", "services", "alternatives"
SAFE_SYSCTLS = {"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies"}
"""Some of those that kubelets allow without being told to."""

Object = dict[str, Any]


class UnsupportedError(Exception):
    """A field that is not simulated, or one that a kubelet would refuse."""


@dataclass
class Node:
    """What the kubelet knows beside the Pod.

    namespace: the node's network. config_maps: by namespace and name. accounts: the files of a service account's
    token volume, by its name; none if it has no use for one. environ: the variables of Services, as they are when a
    container starts. image: what containers are made of; None for this machine.
    """

    namespace: Netns
    config_maps: Callable[[str, str], Mapping[str, str] | None]
    accounts: Callable[[str], Mapping[str, str]] = field(default=lambda _: {})
    environ: Callable[[], Mapping[str, str]] = dict
    resolv_conf: str = ""
    image: Image | None = None


class Pod:
    """A pod of a template (its metadata and spec). namespace: its network; a pod with hostNetwork has the node's.

    address: what probes without a host ask, from the node. changed: called when it becomes ready, or no longer is.
    """

    def __init__(
        self,
        name: str,
        template: Object,
        folder: Path,
        node: Node,
        *,
        namespace: Netns | None = None,
        address: str = "127.0.0.1",
        changed: Callable[[Pod], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.spec: Object = template["spec"]
        self.metadata: Object = template.get("metadata", {})
        self.labels: dict[str, str] = self.metadata.get("labels", {})
        self.folder = folder
        self.node = node
        self.address = address
        self.ready = False
        self.restarts = -1
        self.volumes: dict[str, Volume] = {}
        self._changed = changed
        self._namespace = node.namespace if self.spec.get("hostNetwork") else namespace
        self._stack = contextlib.ExitStack()
        self._deleted: float | None = None
        self._ends: list[tuple[float, signal.Signals]] = []
        self._keeper: threading.Thread | None = None
        self._stopped = threading.Event()
        [self.spec_container] = self.spec["containers"]
        _know(self.spec, _POD_FIELDS, "spec")
        _know(self.spec_container, _CONTAINER_FIELDS, "container")
        self._probes = [Probe(kind, self.spec_container, self) for kind in PROBES if kind in self.spec_container]
        folder.mkdir(parents=True)
        image, base = (node.image, []) if node.image is not None else machine_image(folder / "image")
        self.container = Container(
            image,
            folder / name,
            self.namespace,
            command=self.spec_container["command"],
            args=list(map(self._expanded, self.spec_container.get("args", []))),
            environ=self._environ(),
            mounts=[*base, *self._mounts()],
            security=security(self.spec, self.spec_container),
        )

    @property
    def namespace(self) -> Netns:
        """Its network."""
        if self._namespace is None:
            raise UnsupportedError("a pod without hostNetwork needs a network namespace")
        return self._namespace

    # What the container gets

    def _environ(self) -> dict[str, str]:
        found = dict(self.node.environ()) | {"HOSTNAME": self.name}
        fields = {
            "metadata.name": self.name,
            "metadata.namespace": self.metadata.get("namespace", "kube-system"),
            "status.podIP": self.address,
        }
        for item in self.spec_container.get("env", []):
            if "value" in item:
                found[item["name"]] = item["value"]
                continue
            path = item["valueFrom"].get("fieldRef", {}).get("fieldPath")
            if path not in fields:
                raise UnsupportedError(f"env {item}: fieldRef to one of {sorted(fields)} is simulated")
            found[item["name"]] = fields[path]
        return found

    def _expanded(self, argument: str) -> str:
        return re.sub(r"\$\((\w+)\)", lambda found: self._environ().get(found[1], found[0]), argument)

    def _mounts(self) -> list[Mount]:
        volumes = {volume["name"]: volume for volume in self.spec.get("volumes", [])}
        sources = {name: self._volume(volume) for name, volume in volumes.items()}
        mounts = []
        for mount in self.spec_container.get("volumeMounts", []):
            _know(mount, {"name", "mountPath", "readOnly"}, "volumeMount")
            read_only = mount.get("readOnly", False) or "configMap" in volumes[mount["name"]]
            mounts.append(Mount(sources[mount["name"]], mount["mountPath"], read_only))
        files = self.node.accounts(self.spec.get("serviceAccountName", "default"))
        if files and self.spec.get("automountServiceAccountToken", True):
            self.volumes["kube-api-access"] = Volume(self.folder / "volume-kube-api-access", **files)
            mounts.append(Mount(self.folder / "volume-kube-api-access", ACCOUNT, read_only=True))
        (self.folder / "resolv.conf").write_text(self.node.resolv_conf)
        return [*mounts, Mount(self.folder / "resolv.conf", "/etc/resolv.conf")]

    def _volume(self, volume: Object) -> Path:
        name = volume["name"]
        source = self.folder / f"volume-{name}"
        _know(volume, {"name", "configMap", "emptyDir", "hostPath"}, "volume")
        if "configMap" in volume:
            self.volumes[name] = Volume(source, **self._keys(volume["configMap"]))
        elif "hostPath" in volume:
            if volume["hostPath"].get("type") != "FileOrCreate":
                raise UnsupportedError(f"hostPath {volume['hostPath']}: FileOrCreate is simulated")
            source.touch()
        else:
            self._empty_dir(source, volume["emptyDir"])
        return source

    def _keys(self, config_map: Object) -> Mapping[str, str]:
        _know(config_map, {"name", "optional", "items"}, "configMap")
        keys = self.node.config_maps(self.metadata.get("namespace", "kube-system"), config_map["name"])
        if keys is None:
            if not config_map.get("optional"):
                raise UnsupportedError(f"there is no ConfigMap {config_map['name']}: the pod would wait for it")
            return {}
        if "items" not in config_map:
            return keys
        return {item["path"]: keys[item["key"]] for item in config_map["items"]}

    def _empty_dir(self, source: Path, wanted: Object) -> None:
        """A file system of that size. (On a real node one of the disk has no bound: its pod is evicted.)"""
        _know(wanted, {"medium", "sizeLimit"}, "emptyDir")
        source.mkdir()
        size = f",size={quantity(wanted['sizeLimit'])}" if "sizeLimit" in wanted else ""
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=777{size}", "emptydir", source], check=True)
        self._stack.callback(lambda: subprocess.run(["umount", "--lazy", source], check=True))
        if group := self.spec.get("securityContext", {}).get("fsGroup"):
            os.chown(source, 0, group)
            source.chmod(0o2777)

    def update_config_maps(self) -> None:
        """Bring the volumes of ConfigMaps up to date, as the kubelet does about once a minute."""
        for volume in self.spec.get("volumes", []):
            if "configMap" in volume:
                self.volumes[volume["name"]].write(**self._keys(volume["configMap"]))

    # Its life

    def start(self) -> Self:
        """Start the container; from then on it is probed, and started again when it has ended."""
        self._stack.enter_context(self.container)
        self._start_container()
        self._keeper = threading.Thread(target=self._keep, name=self.name)
        self._keeper.start()
        return self

    def _start_container(self) -> None:
        self.container.start()
        self.restarts += 1
        for probe in self._probes:
            probe.begin()

    def _keep(self) -> None:
        """Probe the container, start it again, and end it."""
        again = 0.0
        while not self._stopped.wait(_TICK):
            if not self.runs:
                self._set_ready(False)
                if self._deleted is not None:
                    return
                if time.monotonic() < again:
                    continue
                again = time.monotonic() + BACK_OFF
                self._start_container()
            self._probe()
            self._signal_when_due()

    def _signal_when_due(self) -> None:
        """Send the next of the signals that end it, if its time has come and process 1 is there."""
        if self._ends and time.monotonic() >= self._ends[0][0] and self.runs:
            with contextlib.suppress(RuntimeError, ProcessLookupError):  # it is not there yet, or no longer
                self.signal(self._ends[0][1])
                del self._ends[0]

    def _probe(self) -> None:
        """Ask those probes whose time has come."""
        startup, liveness, readiness = (
            next((probe for probe in self._probes if probe.kind == kind), None) for kind in PROBES
        )
        if startup is not None and not startup.passed and self._deleted is None:
            startup.ask()
            if startup.failed:
                self.container.kill()
            return
        if liveness is not None and self._deleted is None:
            liveness.ask()
            if liveness.failed:
                self.container.kill()
        if readiness is not None:
            readiness.ask()
        self._set_ready(self.runs and (readiness is None or readiness.passed))

    def _set_ready(self, ready: bool) -> None:
        if ready != self.ready:
            self.ready = ready
            self._changed(self)

    @property
    def deleted(self) -> bool:
        """Whether it has a deletionTimestamp."""
        return self._deleted is not None

    @property
    def gone(self) -> bool:
        """Whether it was deleted and has ended."""
        return self.deleted and (self._keeper is None or not self._keeper.is_alive())

    @property
    def runs(self) -> bool:
        """Whether its container runs."""
        return self.container.process is not None and self.container.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """A signal to the container's first process."""
        os.kill(self.container.pid, number)

    def delete(self) -> None:
        """SIGTERM; SIGKILL when the grace period is over. The readiness probe goes on meanwhile, the others do not."""
        grace = self.spec.get("terminationGracePeriodSeconds", 30)
        self._deleted = time.monotonic()
        self._ends = [(self._deleted, signal.SIGTERM), (self._deleted + grace, signal.SIGKILL)]

    def wait_gone(self) -> int:
        """Wait for the end that `delete` has begun; the container's exit code."""
        assert self._keeper is not None
        self._keeper.join()
        return self.container.wait()

    def wait_ready(self, seconds: float = READY_SECONDS) -> float:
        """Wait until it is ready; returns the seconds."""
        try:
            return procs.wait_until(lambda: self.ready, seconds, f"{self.name} is ready", 0.01)
        except AssertionError as error:
            raise AssertionError(f"{error}\nlog:\n{self.log}") from None

    def close(self) -> None:
        """End at once, and clear up."""
        self._stopped.set()
        if self._keeper is not None:
            self._keeper.join()
        self._stack.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
        if error is not None:
            error.add_note(f"log of {self.name}:\n{self.log[-4000:]}")

    @property
    def log(self) -> str:
        """What the container wrote, from every start."""
        return self.container.log


PROBES = "startupProbe", "livenessProbe", "readinessProbe"


class Probe:
    """One probe of a container. passed, failed: whether its thresholds were reached last."""

    def __init__(self, kind: str, container: Object, pod: Pod) -> None:
        self.kind = kind
        self.spec: Object = container[kind]
        self.ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        self.pod = pod
        self.passed = self.failed = False
        self._next = 0.0
        self._successes = self._failures = 0
        _know(self.spec, _PROBE, kind)

    def begin(self) -> None:
        """The container has been started."""
        self.passed = self.failed = False
        self._successes = self._failures = 0
        self._next = time.monotonic() + self.spec.get("initialDelaySeconds", 0)

    def ask(self) -> None:
        """Ask, if it is time."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self.spec.get("periodSeconds", 10)
        if self._works():
            self._successes, self._failures = self._successes + 1, 0
            self.failed = False
            self.passed = self.passed or self._successes >= self.spec.get("successThreshold", 1)
        else:
            self._successes, self._failures = 0, self._failures + 1
            if self._failures >= self.spec.get("failureThreshold", 3):
                self.passed, self.failed = False, True

    def _works(self) -> bool:
        if "exec" in self.spec:
            return self.pod.container.run(*self.spec["exec"]["command"]).returncode == 0
        get = self.spec["httpGet"]
        _know(get, {"host", "path", "port"}, "httpGet")
        port = self.ports.get(get["port"], get["port"])
        address = get.get("host", self.pod.address)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = self.pod.node.namespace.socket(family, socket.SOCK_STREAM)
        connection = http.client.HTTPConnection(address, port)
        try:
            sock.settimeout(self.spec.get("timeoutSeconds", 1))
            sock.connect((address, port))
            connection.sock = sock
            connection.request("GET", get.get("path", "/"))
            return 200 <= connection.getresponse().status < 400
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
            sock.close()


def security(spec: Object, container: Object) -> oci.Security:
    """What a pod's and its container's securityContext mean. Raises UnsupportedError for what a kubelet refuses."""
    pod, own = spec.get("securityContext", {}), container.get("securityContext", {})
    _know(pod, _POD_SECURITY, "the pod's securityContext")
    _know(own, _CONTAINER_SECURITY, "the container's securityContext")
    _know(container.get("resources", {}).get("limits", {}), {"memory"}, "limits")
    if own.get("privileged"):
        raise UnsupportedError("privileged containers are not simulated")
    both = pod | own
    if both.get("runAsNonRoot") and not both.get("runAsUser"):
        raise UnsupportedError("container has runAsNonRoot and image will run as root")
    for sysctl in pod.get("sysctls", []):
        if sysctl["name"] not in SAFE_SYSCTLS or spec.get("hostNetwork"):
            raise UnsupportedError(f"sysctl {sysctl['name']} is not allowed")
    return oci.security_of(spec, container)


def machine_image(folder: Path) -> tuple[Image, list[Mount]]:
    """An image in a folder, and what is to be mounted for the rest of it: this machine's programs, and kdns."""
    for name in ("etc", "opt/kdns/bin", "run", "tmp", "var"):
        (folder / name).mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    (folder / "var/run").symlink_to("/run")
    for name in _ETC:
        if (Path("/etc") / name).exists():
            subprocess.run(["cp", "-a", f"/etc/{name}", folder / "etc"], check=True)
    (folder / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nkdns:x:53530:53530::/:/bin/false\n")
    (folder / "etc/group").write_text("root:x:0:\nkdns:x:53530:\n")
    (folder / "etc/hosts").write_text("127.0.0.1 localhost\n")
    program = folder / "opt/kdns/bin/kdns"
    interpreter = Path(sys.executable).resolve() if sys.prefix == sys.base_prefix else _VENV / "bin/python"
    program.write_text(f"#!{interpreter} -B\nfrom kdns.cli import app\n\napp()\n")
    program.chmod(0o755)
    base = Path(sys.base_prefix).resolve()
    shown = [Path("/usr"), *([] if base.is_relative_to("/usr") else [base])]
    for path in (Path(f"/{name}") for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32")):
        if path.is_symlink():
            (folder / path.name).symlink_to(path.readlink())
        elif path.is_dir():
            shown.append(path)
    mounts = [Mount(path, str(path), read_only=True) for path in shown]
    if sys.prefix != sys.base_prefix:
        mounts.append(Mount(Path(sys.prefix), str(_VENV), read_only=True))
    environ = [f"PATH=/opt/kdns/bin:{os.defpath}:/usr/sbin:/sbin", "PYTHONPATH=/opt/kdns", "HOME=/"]
    environ += [f"{speed.VARIABLE}={os.environ[speed.VARIABLE]}"] if speed.VARIABLE in os.environ else []
    return Image(folder, {"Env": environ}), [*mounts, Mount(ROOT / "kdns", "/opt/kdns/kdns", read_only=True)]


def quantity(text: str | int) -> int:
    """A Kubernetes quantity of bytes."""
    found = re.fullmatch(r"(\d+)(\w*)", str(text))
    if found is None or found[2] not in _UNITS:
        raise UnsupportedError(f"quantity {text!r}")
    return int(found[1]) * _UNITS[found[2]]


def _know(found: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(set(found) - known):
        raise UnsupportedError(f"{where}: not simulated: {', '.join(unknown)}")
