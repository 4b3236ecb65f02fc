"""How many CPUs this process may use: threads beyond them wait for one another, ten times over.

`os.cpu_count` counts the node's, whatever the pod's limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

CGROUPS: Final = "sys/fs/cgroup"


def usable_cpus(root: Path = Path("/")) -> int:
    """Whole CPUs of its affinity and of the quotas of its control groups; 1 at least.

    `root`: where /proc and /sys are. Source: cpu.max in the kernel's admin-guide/cgroup-v2, and
    scheduler/sched-bwc for v1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quotas = (quota for folder in _folders(root) for quota in (*_v2(folder), *_v1(folder)))
    return max(1, int(min([cores or 1, *quotas])))


def _folders(root: Path) -> Iterator[Path]:
    """Of the groups that this process is in, from the top. A container sees its own as the top, by
    cgroup v1 under a path that only its node has.
    """
    for line in _words(root / "proc/self/cgroup", "\n"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        parts = Path(path).parts[1:]
        if ".." not in parts and ("cpu" in controllers.split(",") or not controllers):
            top = root / CGROUPS / controllers
            yield from (top.joinpath(*parts[:depth]) for depth in range(len(parts) + 1))


def _v2(folder: Path) -> Iterator[float]:
    yield from _share(_words(folder / "cpu.max"))


def _v1(folder: Path) -> Iterator[float]:
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    yield from _share([word for name in names for word in _words(folder / name)])


def _share(words: list[str]) -> Iterator[float]:
    """CPUs of a quota and its period; none where it is `max`, -1 or unheard of."""
    if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
        yield int(words[0]) / int(words[1])


def _words(file: Path, separator: str | None = None) -> list[str]:
    try:
        return file.read_text(encoding="ascii", errors="replace").split(separator)
    except OSError:
        return []
