"""What the control groups that this process is in allow it: memory and CPU time (cgroups(7), both versions).

A limit may stand at the process's own group or at any above it, and the least counts. In a container the groups above
its own are often out of sight, and so are their limits.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT = 1 << 60
"""Version 1 writes "no limit" as the largest number of bytes in whole pages."""


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that this process and those it shares a group with may take; None without a limit.

    root: where /proc and the mounts are looked for. `memory.high` counts as well: beyond it the kernel takes memory
    back by slowing the processes down.
    """
    found = [
        limit
        for folder in _folders("memory", root)
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes")
        if (limit := _number(folder / name)) is not None and limit < _NO_LIMIT
    ]
    return min(found, default=None)


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may use: its affinity, and its groups' limits rounded up; at least 1."""
    count = len(os.sched_getaffinity(0))
    for folder in _folders("cpu", root):
        for quota, period in (_shares(folder / "cpu.max"), _old_shares(folder)):
            if quota > 0 and period > 0:
                count = min(count, -(-quota // period))
    return count


def _shares(path: Path) -> tuple[int, int]:
    """Microseconds of CPU time, and in how many microseconds, of version 2; (0, 0) if there is no limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = path.read_text().split()
        return int(quota), int(period)
    return 0, 0


def _old_shares(folder: Path) -> tuple[int, int]:
    """The same of version 1, where the time is -1 if there is no limit."""
    return _number(folder / "cpu.cfs_quota_us") or 0, _number(folder / "cpu.cfs_period_us") or 0


def _number(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's groups that have a controller's files, its own group's first."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    paths = {}
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            paths["cgroup" if controllers else "cgroup2"] = Path(path)
    for line in mounts:
        before, _, after = line.partition(" - ")
        top, mount = before.split()[3:5]
        kind, _, options = after.split()[:3]
        if kind in paths and (kind == "cgroup2" or controller in options.split(",")):
            yield from _upwards(root / mount.lstrip("/"), Path(top), paths[kind])


def _upwards(mount: Path, top: Path, path: Path) -> Iterator[Path]:
    """A group's folder and those above it, up to where they are mounted.

    top: the group that is mounted there. A path that does not lead below it is of another cgroup namespace or mount:
    what is mounted is then the process's own group.
    """
    folder = mount / path.relative_to(top) if path.is_relative_to(top) else mount
    if not folder.is_dir():
        folder = mount
    while folder != mount:
        yield folder
        folder = folder.parent
    yield mount
