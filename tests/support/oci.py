"""Containers as a cluster's node runs them: containerd's runtime specification, run by runc.

The root file system is an overlay whose lower layer is the image; what a pod says about users, capabilities, seccomp,
a read-only root, sysctls and memory is in the specification, as containerd's CRI puts it there.
https://github.com/opencontainers/runtime-spec/blob/main/config.md
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.netns import Netns

PROGRAMS = ("runc", "mount", "umount")
PROFILE = Path("/usr/share/containers/seccomp.json")
"""What the runtimes' default profile is here (Debian: golang-github-containers-common)."""
STOP_SECONDS = 20.0
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE", "NET_RAW",
    "SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "SETFCAP",
)  # fmt: skip
"""Those of a container if nobody says."""
_MASKED = ("/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
           "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi")  # fmt: skip
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_MOUNTS = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),  # noqa: S108
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    ("/sys/fs/cgroup", "cgroup", "cgroup", ("nosuid", "noexec", "nodev", "relatime", "ro")),
)


@dataclass(frozen=True, slots=True)
class Image:
    """An unpacked image. root: its files. config: the `config` of its image configuration."""

    root: Path
    config: Mapping[str, Any]

    def environment(self) -> dict[str, str]:
        """Its variables."""
        return dict(entry.split("=", 1) for entry in self.config.get("Env", ()))

    def user(self) -> tuple[int, int]:
        """Its user and group; they have to be numbers."""
        user, _, group = str(self.config.get("User") or "0:0").partition(":")
        return int(user), int(group or 0)


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory or file of the host that the container sees."""

    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Security:
    """What a pod says of a container. user: None for the image's. memory: limit in bytes."""

    user: tuple[int, int] | None = None
    groups: tuple[int, ...] = ()
    capabilities: tuple[str, ...] = CAPABILITIES
    no_new_privileges: bool = False
    read_only: bool = False
    seccomp: bool = True
    sysctls: Mapping[str, str] | None = None
    memory: int | None = None


def security_of(pod: Mapping[str, Any], container: Mapping[str, Any]) -> Security:
    """The security contexts of a pod's and a container's specification, and the memory limit."""
    own = container.get("securityContext", {})
    both = pod.get("securityContext", {}) | own
    said = own.get("capabilities", {})
    usual = () if "ALL" in said.get("drop", ()) else tuple(set(CAPABILITIES) - set(said.get("drop", ())))
    user = both.get("runAsUser")
    group = both.get("fsGroup")
    limit = container.get("resources", {}).get("limits", {}).get("memory")
    return Security(
        user=None if user is None else (user, both.get("runAsGroup", 0)),
        groups=() if group is None else (group,),
        capabilities=tuple(sorted({*usual, *said.get("add", ())})),
        no_new_privileges=own.get("allowPrivilegeEscalation") is False,
        read_only=bool(own.get("readOnlyRootFilesystem")),
        seccomp=both.get("seccompProfile", {}).get("type") == "RuntimeDefault",
        sysctls={one["name"]: one["value"] for one in pod.get("securityContext", {}).get("sysctls", ())},
        memory=None if limit is None else int(limit.removesuffix("Mi")) << 20,
    )


class Container:
    """A container in a network namespace; a context manager. folder: of its own.

    command, args: as in a pod: command stands for the image's entry point, args for its command. After `start`,
    `process` is the runtime's, which ends as the container does.
    """

    def __init__(
        self,
        image: Image,
        folder: Path,
        netns: Netns,
        *,
        command: Sequence[str] | None = None,
        args: Sequence[str] | None = None,
        environ: Mapping[str, str] | None = None,
        mounts: Sequence[Mount] = (),
        security: Security = Security(),
    ) -> None:
        self.image = image
        self.folder = folder
        self.netns = netns
        self.mounts = mounts
        self.security = security
        self.environ = {**image.environment(), **(environ or {})}
        usual = () if command is not None else image.config.get("Cmd", ())
        self.command = [
            *(image.config.get("Entrypoint", ()) if command is None else command),
            *(usual if args is None else args),
        ]
        self.name = f"{netns.name}-{folder.name}"
        self.process: subprocess.Popen[bytes] | None = None
        self.log_path = folder / "log"
        folder.mkdir(parents=True)

    # Its life

    def __enter__(self) -> Self:
        for name in ("upper", "work", "rootfs"):
            (self.folder / name).mkdir()
        options = f"lowerdir={self.image.root},upperdir={self.folder / 'upper'},workdir={self.folder / 'work'}"
        _run("mount", "-t", "overlay", "-o", options, "overlay", str(self.folder / "rootfs"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.kill()
        finally:
            _run("umount", str(self.folder / "rootfs"))

    def start(self) -> Self:
        """Start it, or start it again."""
        (self.folder / "config.json").write_text(json.dumps(self.specification()))
        command = [*self._runc, "run", "--bundle", str(self.folder), self.name]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Wait for its end; its exit code."""
        assert self.process is not None
        return self.process.wait(seconds)

    def terminate(self, seconds: float = STOP_SECONDS) -> int:
        """As kubelet ends it, but without a SIGKILL; its exit code."""
        _run(*self._runc, "kill", self.name, "TERM")
        return self.wait(seconds)

    def kill(self) -> None:
        """End it, and forget it."""
        if self.process is None:
            return
        subprocess.run([*self._runc, "delete", "--force", self.name], capture_output=True)
        self.process.wait(STOP_SECONDS)
        self.process = None

    @property
    def pid(self) -> int:
        """Its first process. Raises RuntimeError if it has none (any longer): 0 would mean a group of processes."""
        pid = int(json.loads(_run(*self._runc, "state", self.name))["pid"])
        if pid == 0:
            raise RuntimeError(f"{self.name}: has ended")
        return pid

    def pids(self) -> list[int]:
        """All of its processes."""
        return [int(pid) for pid in json.loads(_run(*self._runc, "ps", "--format", "json", self.name))]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Another process in it, as `kubectl exec` and exec probes start one."""
        return subprocess.run([*self._runc, "exec", self.name, *command], capture_output=True, text=True)

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def written(self) -> list[str]:
        """The files that are in its root and not in the image, but for those that mounts are laid over."""
        upper = self.folder / "upper"
        targets = {mount.target.lstrip("/") for mount in self.mounts} | {mount[0].lstrip("/") for mount in _MOUNTS}
        found = (path.relative_to(upper) for path in upper.rglob("*") if not path.is_dir())
        return sorted(str(path) for path in found if str(path) not in targets)

    @property
    def _runc(self) -> list[str]:
        return ["runc", "--root", str(self.folder / "state")]

    # What it is

    def specification(self) -> dict[str, Any]:
        """The runtime's config.json."""
        said = self.security
        uid, gid = self.image.user() if said.user is None else said.user
        names = [f"CAP_{name}" for name in said.capabilities]
        return {
            "ociVersion": "1.0.2",
            "hostname": "kdns",
            "process": {
                "terminal": False,
                "user": {"uid": uid, "gid": gid, "additionalGids": list(said.groups)},
                "args": self.command,
                "env": [f"{name}={value}" for name, value in self.environ.items()],
                "cwd": self.image.config.get("WorkingDir") or "/",
                "capabilities": {"bounding": names, "effective": names, "permitted": names},
                "noNewPrivileges": said.no_new_privileges,
            },
            "root": {"path": str(self.folder / "rootfs"), "readonly": said.read_only},
            "mounts": [_mount(*one) for one in _MOUNTS] + [self._bind(mount) for mount in self.mounts],
            "linux": {
                "namespaces": [
                    *({"type": kind} for kind in ("pid", "ipc", "uts", "mount")),
                    {"type": "network", "path": f"/run/netns/{self.netns.name}"},
                ],
                "sysctl": dict(said.sysctls or {}),
                "maskedPaths": list(_MASKED),
                "readonlyPaths": list(_READ_ONLY),
                "cgroupsPath": f"/{self.name}",
                "resources": {
                    "devices": [{"allow": False, "access": "rwm"}],
                    **({"memory": {"limit": said.memory}} if said.memory else {}),
                },
                **({"seccomp": _seccomp(names)} if said.seccomp else {}),
            },
        }

    def _bind(self, mount: Mount) -> dict[str, Any]:
        options = ("rbind", "rprivate", "ro" if mount.read_only else "rw")
        return _mount(mount.target, "bind", str(mount.source), options)


def _mount(target: str, kind: str, source: str, options: Sequence[str]) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}


def _seccomp(capabilities: Sequence[str]) -> dict[str, Any]:
    """The default profile for a container with these capabilities (its `includes` and `excludes` decided)."""
    profile = json.loads(PROFILE.read_text())
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)

    def applies(rule: Mapping[str, Any]) -> bool:
        wanted, refused = rule.get("includes") or {}, rule.get("excludes") or {}
        return (
            set(wanted.get("caps") or ()) <= set(capabilities)
            and machine in (wanted.get("arches") or [machine])
            and not set(refused.get("caps") or ()) & set(capabilities)
            and machine not in (refused.get("arches") or ())
        )

    [native] = [one for one in profile["archMap"] if one["architecture"] == f"SCMP_ARCH_{os.uname().machine.upper()}"]
    return {
        "defaultAction": profile["defaultAction"],
        "architectures": [native["architecture"], *native["subArchitectures"]],
        "syscalls": [
            {key: rule[key] for key in ("names", "action", "args", "errnoRet") if rule.get(key)}
            for rule in profile["syscalls"]
            if applies(rule)
        ],
    }


def missing() -> list[str]:
    """What is not installed here and has to be."""
    return [name for name in PROGRAMS if shutil.which(name) is None] + ([] if PROFILE.exists() else [str(PROFILE)])


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
