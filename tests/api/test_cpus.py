"""How many CPUs a process may use: those of its affinity, and of the quotas above it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rlhf_api.cpus import usable_cpus

V2 = "sys/fs/cgroup/cpu.max"
V1 = "sys/fs/cgroup/cpu,cpuacct/{}/cpu.cfs_{}_us"


def machine(root: Path, membership: str, files: dict[str, str]) -> Path:
    """The files of /proc and /sys of a process that belongs to these groups."""
    for name, text in {"proc/self/cgroup": membership, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n", "ascii")
    return root


@pytest.mark.parametrize(
    ("membership", "files", "cpus"),
    [
        ("0::/", {V2: "400000 100000"}, 4),
        ("0::/", {V2: "350000 100000"}, 3),  # the fourth thread would wait for the others' time
        ("0::/", {V2: "50000 100000"}, 1),
        ("0::/", {V2: "max 100000"}, 64),
        ("0::/", {V2: "9900000 100000"}, 64),
        ("0::/", {V2: "of another kernel"}, 64),
        ("0::/user/mine", {"sys/fs/cgroup/user/cpu.max": "200000 100000"}, 2),  # no container's
        ("0::/../../system", {"sys/system/cpu.max": "200000 100000"}, 64),  # outside what we see
        (
            "4:cpu,cpuacct:/kubepods/pod1\n1:memory:/kubepods",  # a container of cgroup v1
            {V1.format(".", "quota"): "800000", V1.format(".", "period"): "100000"},
            8,
        ),
        ("4:cpu,cpuacct:/", {V1.format(".", "quota"): "-1", V1.format(".", "period"): "1"}, 64),
        ("5:cpuset:/\n9:freezer:/", {}, 64),
    ],
)
def test_a_quota_of_a_container_or_of_a_group_above_limits_the_cores(
    membership: str,
    files: dict[str, str],
    cpus: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert usable_cpus(machine(tmp_path, membership, files)) == cpus


def test_cores_outside_the_affinity_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A static CPU manager, taskset, Slurm."""
    monkeypatch.setattr(os, "cpu_count", lambda: 192)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 4, 5}, raising=False)
    assert usable_cpus(tmp_path) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cpus(tmp_path) == 192
