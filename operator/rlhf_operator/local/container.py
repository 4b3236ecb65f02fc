"""One container on one machine: a directory that tells, by itself, how it is.

pod.json      what is to run: command, grace, tag; written before it starts
process.json  its supervisor has started;  pod.lock is held while it lives
exit.json     how it ended
ending        it was sent SIGTERM; how many seconds it has
log.txt       what it has written
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rlhf_operator.local import shim
from rlhf_operator.local.processes import is_locked, send, tagged


class Container:
    """A container by its directory; the processes are looked at afresh each time."""

    def __init__(self, directory: Path, tag: str) -> None:
        """`tag` is what all of its processes carry in their environment."""
        self.directory = directory
        self.tag = tag
        self.supervisor: subprocess.Popen[bytes] | None = None

    def start(self, environ: Mapping[str, str]) -> None:
        """Starts the supervisor. Its standard input stays open as long as this process lives."""
        self.supervisor = subprocess.Popen(
            [sys.executable, "-I", shim.__file__, str(self.directory)],
            stdin=subprocess.PIPE,
            env=dict(environ),
            start_new_session=True,
        )

    @property
    def state(self) -> Literal["waiting", "starting", "running", "ended"]:
        """Running until nobody of it can write any more; ended without `exit`: it was lost.

        A look changes nothing, whoever takes it.
        """
        is_held = is_locked(self.directory / "pod.lock")
        if self.exit is not None and not is_held:
            return "ended"
        if is_held:
            return "running"
        if self.is_supervised:
            return "starting"
        if not self.was_started:
            return "waiting"
        return "running" if tagged(self.tag) else "ended"

    @property
    def exit(self) -> dict[str, Any] | None:
        """Code, whether it was a disruption, and when (unix seconds)."""
        return read(self.directory / "exit.json")

    @property
    def started_at(self) -> float | None:
        """Unix seconds."""
        process = read(self.directory / "process.json")
        return float(process["started"]) if process else None

    @property
    def was_started(self) -> bool:
        """Whether its supervisor was started, now or by an earlier run."""
        return self.supervisor is not None or (self.directory / "process.json").exists()

    @property
    def is_supervised(self) -> bool:
        """Whether the supervisor that this process started runs."""
        return self.supervisor is not None and self.supervisor.poll() is None

    @property
    def is_orphaned(self) -> bool:
        """Whether its supervisor was killed, and so nobody will tell how it ends."""
        if self.is_supervised or not self.was_started or self.exit is not None:
            return False
        return not is_locked(self.directory / "pod.lock")

    def end_orphans(self) -> None:
        """Kills what has outlived a killed supervisor. Only its owner may: others just look."""
        if self.is_orphaned:
            for pid in tagged(self.tag):
                send(pid, signal.SIGKILL)

    def ask_to_end(self, grace: float) -> None:
        """SIGTERM; the supervisor kills after so many seconds. Asking again can only shorten it."""
        asked = read(self.directory / "ending")
        process = read(self.directory / "process.json")
        is_news = asked is None or grace < asked["grace"]
        if process and is_news and is_locked(self.directory / "pod.lock"):
            write(self.directory / "ending", {"grace": grace})
            send(process["pid"], signal.SIGTERM)

    def kill(self) -> None:
        """Ends everything at once, the supervisor, too."""
        for pid in tagged(self.tag):
            send(pid, signal.SIGKILL)
        if self.supervisor:
            self.supervisor.kill()

    def disrupt(self) -> None:
        """Says that the owner goes: the pod saves its state, and its end is no fault of it."""
        if self.supervisor and self.supervisor.stdin:
            self.supervisor.stdin.close()


def read(path: Path) -> dict[str, Any] | None:
    """A file of the directory; None where it is not there, or torn by a crash of the machine."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(value), encoding="utf-8")
    draft.replace(path)
