"""One pod's supervisor, as containerd's shim is: it outlives neither pod nor, for long, owner.

    shim.py DIRECTORY

runs the command in DIRECTORY/pod.json there, with its output in log.txt, and writes exit.json when
no process of the pod is left. All the while it holds a lock on pod.lock, which tells anybody that
it lives: the system frees it however the process ends. SIGTERM asks the command to end; the end of
standard input says that the owner has gone, which is a disruption. What has not ended after the
grace period is killed, with everything that it started, in whatever session.

Run as a file, so standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def main(directory: Path) -> int:
    """Runs the pod to its end."""
    pod = json.loads((directory / "pod.json").read_text(encoding="utf-8"))
    wake, asked = _watch_signals()
    _adopt_orphans()
    with (directory / "pod.lock").open("w") as lock, (directory / "log.txt").open("ab") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _write(directory / "process.json", {"pid": os.getpid(), "started": time.time()})
        if _owner_has_gone():
            return _finish(directory, 143, disrupted=True)
        return _run(directory, pod, log, wake, asked)


def _run(directory: Path, pod: dict[str, Any], log: BinaryIO, wake: int, asked: list[int]) -> int:
    try:
        child = subprocess.Popen(
            pod["command"],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        log.write(f"{pod['command'][0]}: {error.strerror}\n".encode())
        return _finish(directory, 127, disrupted=False)
    disrupted = _supervise(directory, child, wake, asked, float(pod["grace"]))
    _kill_the_rest(child)
    code = child.returncode
    return _finish(directory, 128 - code if code < 0 else code, disrupted=disrupted)


def _owner_has_gone() -> bool:
    """Whether standard input has ended already: nobody would wait for this pod."""
    ready, _, _ = select.select([sys.stdin.fileno()], [], [], 0)
    return bool(ready) and not os.read(sys.stdin.fileno(), 512)


def _finish(directory: Path, code: int, *, disrupted: bool) -> int:
    _write(directory / "exit.json", {"code": code, "disrupted": disrupted, "finished": time.time()})
    return code


def _supervise(
    directory: Path, child: subprocess.Popen[bytes], wake: int, asked: list[int], grace: float
) -> bool:
    """Waits for the command to end; True where it ended because the owner had gone."""
    kill_at = math.inf
    heard = 0
    owner_gone = False
    while child.poll() is None:
        sources = [wake] if owner_gone else [wake, sys.stdin.fileno()]
        ready, _, _ = select.select(sources, [], [], 0.5)
        if wake in ready:
            os.read(wake, 512)
        if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 512):
            owner_gone = True
        if len(asked) > heard or (owner_gone and kill_at == math.inf):
            heard = len(asked)
            kill_at = min(kill_at, time.monotonic() + _grace(directory, grace))
            _signal(child.pid, signal.SIGTERM)
        if time.monotonic() >= kill_at:
            _kill_the_rest(child)
    return owner_gone


def _grace(directory: Path, usual: float) -> float:
    """Seconds that whoever asks gives: in the file `ending`, where there is one."""
    try:
        return float(json.loads((directory / "ending").read_text(encoding="utf-8"))["grace"])
    except OSError:
        return usual


def _watch_signals() -> tuple[int, list[int]]:
    """A file descriptor that wakes the loop, and the list of requests to end."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    asked: list[int] = []

    def on_term(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, on_term)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(write)
    return read, asked


def _adopt_orphans() -> None:
    """Makes orphans of the pod children of this process, where the system can (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _kill_the_rest(child: subprocess.Popen[bytes]) -> None:
    """Kills and reaps until nothing of the pod is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    while descendants := _descendants(os.getpid()):
        for pid in descendants:
            _signal(pid, signal.SIGKILL)
        _reap()


def _reap() -> None:
    """Takes the status of what has been killed; waits a moment for the rest."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    time.sleep(0.02)


def _descendants(root: int) -> list[int]:
    """Processes below one, by /proc; empty where there is no /proc."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if name.isdigit():
            with contextlib.suppress(OSError):
                stat = Path("/proc", name, "stat").read_text()
                parents[int(name)] = int(stat.rpartition(")")[2].split()[1])
    found, layer = [], [root]
    while layer:
        layer = [pid for pid, parent in parents.items() if parent in layer]
        found += layer
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _write(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(value), encoding="utf-8")
    draft.replace(path)


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except OSError as full:  # the disk; whoever looks finds a pod that has ended without a word
        sys.exit(f"{full.filename or sys.argv[1]}: {full.strerror}")
