"""Limits of control groups, read as the kernel shows them: both versions, nested, and seen from a container."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from kdns.server import memory
from kdns.server.cgroups import memory_limit, usable_cpus
from kdns.server.respond import MOST_PENDING

V2 = "32 31 0:29 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
NONE_V1 = 9223372036854771712


def machine(root: Path, groups: str, mounts: str, files: Mapping[str, object]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text(mounts)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def test_the_least_limit_of_nested_groups_counts(tmp_path: Path) -> None:
    files = {"pods/memory.max": 300, "pods/one/memory.max": 500, "pods/one/memory.high": "max", "other/memory.max": 1}
    assert memory_limit(machine(tmp_path, "0::/pods/one\n", V2, files)) == 300


def test_no_limit_is_none(tmp_path: Path) -> None:
    assert memory_limit(machine(tmp_path, "0::/pods\n", V2, {"pods/memory.max": "max"})) is None


def test_memory_high_is_a_limit_too(tmp_path: Path) -> None:
    files = {"memory.max": 500, "memory.high": 400}
    assert memory_limit(machine(tmp_path, "0::/\n", V2, files)) == 400


def test_version_1(tmp_path: Path) -> None:
    groups = "4:memory:/kubepods/pod\n1:cpu,cpuacct:/kubepods/pod\n0::/\n"
    files = {"memory/kubepods/memory.limit_in_bytes": 700, "memory/kubepods/pod/memory.limit_in_bytes": NONE_V1}
    assert memory_limit(machine(tmp_path, groups, V1, files)) == 700


def test_version_1_without_a_limit(tmp_path: Path) -> None:
    files = {"memory/memory.limit_in_bytes": NONE_V1}
    assert memory_limit(machine(tmp_path, "4:memory:/\n", V1, files)) is None


@pytest.mark.parametrize("path", ["/kubepods/pod/container", "/../..", "/"])
def test_in_a_container_what_is_mounted_is_its_own_group(tmp_path: Path, path: str) -> None:
    mounts = V1.replace("0:32 / ", "0:32 /kubepods/pod/container ")
    files = {"memory/memory.limit_in_bytes": 700}
    assert memory_limit(machine(tmp_path, f"4:memory:{path}\n", mounts, files)) == 700


def test_a_group_that_is_not_in_sight_leaves_what_is_mounted(tmp_path: Path) -> None:
    assert memory_limit(machine(tmp_path, "0::/kubepods/pod\n", V2, {"memory.max": 700})) == 700


def test_a_system_without_groups_has_no_limits(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) is None
    assert usable_cpus(tmp_path) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "cpus"),
    [
        ("0::/a\n", V2, {"a/cpu.max": "150000 100000"}, 2),
        ("0::/a/b\n", V2, {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, 1),
        ("0::/\n", V2, {"cpu.max": "max 100000"}, 64),
        (
            "1:cpu,cpuacct:/a\n",
            V1,
            {"cpu,cpuacct/a/cpu.cfs_quota_us": 250000, "cpu,cpuacct/a/cpu.cfs_period_us": 100000},
            3,
        ),
        ("1:cpu,cpuacct:/\n", V1, {"cpu,cpuacct/cpu.cfs_quota_us": -1, "cpu,cpuacct/cpu.cfs_period_us": 100000}, 64),
    ],
)
def test_cpu_time_is_limited_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, groups: str, mounts: str, files: Mapping[str, object], cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert usable_cpus(machine(tmp_path, groups, mounts, files)) == cpus


def test_without_a_limit_the_old_bounds_hold() -> None:
    assert memory.share(None, 4).waiting == MOST_PENDING


def test_all_parts_together_are_less_than_the_limit_and_workers_share_them() -> None:
    limit = 256 << 20
    one, two = memory.share(limit, 1), memory.share(limit, 2)
    for count, share in ((1, one), (2, two)):
        taken = share.cached + share.waiting * memory.PENDING + share.held + memory.WORKER
        assert memory.PROCESSES + count * taken < limit
        assert share.cached >= limit // 10
    assert two.cached < one.cached


def test_the_smaller_the_group_the_more_a_worker_is_to_be_preferred_by_the_killer() -> None:
    for limit in (64 << 20, 128 << 20, 256 << 20):
        assert memory.handicap(limit) * limit // 1000 >= 50 << 20
    assert memory.handicap(None) == memory.handicap(64 << 30) < memory.handicap(128 << 20) <= 1000


def test_who_follows_a_cluster_needs_memory_for_its_objects() -> None:
    limit = 256 << 20
    assert memory.share(limit, 2, cluster=True).cached < memory.share(limit, 2).cached
    assert memory.room(100 << 20, 2, cluster=True) < memory.LEAST <= memory.room(100 << 20, 2, cluster=False)


def test_a_group_that_is_too_small_still_leaves_something() -> None:
    share = memory.share(1 << 20, 4)
    assert share.cached > 0
    assert share.waiting > 0
    assert share.held > 0
