"""Whether a pod's supervisor lives, and whether processes of a pod have outlived it."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path
from typing import Final

TAG: Final = "RLHF_LOCAL_POD"
"""Environment variable that every process of a pod inherits; its value is the pod's own."""

PROC: Final = Path("/proc")


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock. Unlike a process number it cannot be reused."""
    try:
        with path.open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def tagged(tag: str) -> list[int]:
    """Processes that carry a pod's tag, whoever their parent is now. Linux only; elsewhere none."""
    wanted = f"{TAG}={tag}".encode()
    return [pid for pid in _all_processes() if wanted in environment_of(pid)]


def _all_processes() -> list[int]:
    if not PROC.joinpath("self/environ").exists():
        return []
    return [int(name) for name in os.listdir(PROC) if name.isdigit()]


def environment_of(pid: int) -> list[bytes]:
    """A process's variables, as ``NAME=value``."""
    try:
        return PROC.joinpath(str(pid), "environ").read_bytes().split(b"\0")
    except OSError:
        return []  # it has ended, or belongs to somebody else


def send(pid: int, number: signal.Signals) -> None:
    """Signals a process; one that has just ended is as it should be."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
