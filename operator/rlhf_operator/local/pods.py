"""One pod on one machine: a directory that tells, by itself, what the pod is and how it is.

pod.json      what it is; written last, so where it is, the rest is, too
process.json  its supervisor has started;  pod.lock is held while it lives
exit.json     how it ended
deleting, ending, late   it was asked to go; was sent SIGTERM; ran into its deadline
log.txt, termination/message.json, and the links that are its volumes
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from rlhf_api.run import TERMINATION_LOG

from rlhf_operator.local import shim
from rlhf_operator.local.kubelet import tail
from rlhf_operator.local.processes import is_locked, send, tagged
from rlhf_operator.observed import Pod, PodPhase, parse_result

GONE: Final = "pod.deleted.json"


class PodRecord(NamedTuple):
    """What pod.json holds."""

    uid: str  # of the RLHFJob
    stage: str
    attempt: int
    hash: str
    settings: str
    completion_index: int
    size: int  # pods of the gang
    ranks: int  # processes that the pod starts
    devices: int
    grace: int
    deadline: int | None  # seconds it may run
    tag: str
    command: list[str]
    environment: dict[str, str]  # its own variables


class LocalPod:
    """A pod by its directory; the processes are looked at afresh each time."""

    def __init__(self, directory: Path, record: PodRecord) -> None:
        self.directory = directory
        self.record = record
        self.supervisor: subprocess.Popen[bytes] | None = None

    @classmethod
    def read(cls, directory: Path) -> LocalPod | None:
        """The pod of a directory; None where it is not whole, or was deleted."""
        value = _read(directory / "pod.json")
        try:
            return cls(directory, PodRecord(**value)) if value else None
        except TypeError:
            return None  # another version's

    def save(self) -> None:
        """Makes the pod exist."""
        _write(self.directory / "pod.json", self.record._asdict())

    def start(self, environ: Mapping[str, str]) -> None:
        """Starts the supervisor. Its standard input stays open as long as this process lives."""
        self.supervisor = subprocess.Popen(
            [sys.executable, "-I", shim.__file__, str(self.directory)],
            stdin=subprocess.PIPE,
            env=dict(environ),
            start_new_session=True,
        )

    @property
    def was_started(self) -> bool:
        """Whether its supervisor was started, now or by an earlier run."""
        return self.supervisor is not None or (self.directory / "process.json").exists()

    @property
    def is_supervised(self) -> bool:
        """Whether the supervisor that this process started runs."""
        return self.supervisor is not None and self.supervisor.poll() is None

    @property
    def is_deleting(self) -> bool:
        """Whether it was asked to go."""
        return (self.directory / "deleting").exists()

    @property
    def is_live(self) -> bool:
        """Whether any process of it may still write."""
        return self.phase == "Running" or (self.supervisor is not None and self.phase == "Pending")

    @property
    def phase(self) -> PodPhase:
        """As Kubernetes would say."""
        ended = self._exit()
        if ended is not None and not is_locked(self.directory / "pod.lock"):
            return "Succeeded" if ended["code"] == 0 else "Failed"
        if is_locked(self.directory / "pod.lock"):
            return "Running"
        if self.is_supervised:
            return "Pending"  # the supervisor is on its way
        if not self.was_started:
            return "Failed" if self.is_deleting else "Pending"
        return "Running" if self._kill_leftovers() else "Failed"

    def _kill_leftovers(self) -> bool:
        """Kills what outlived a killed supervisor; whether there was something."""
        left = tagged(self.record.tag)
        for pid in left:
            send(pid, signal.SIGKILL)
        return bool(left)

    def ask_to_end(self) -> None:
        """SIGTERM, once; the supervisor kills after the grace period."""
        marker = self.directory / "ending"
        process = _read(self.directory / "process.json")
        if process and not marker.exists() and is_locked(self.directory / "pod.lock"):
            marker.touch()
            send(process["pid"], signal.SIGTERM)

    def check_deadline(self, now: float) -> None:
        """Marks a pod that has run too long. `now` in unix seconds."""
        process = _read(self.directory / "process.json")
        if self.record.deadline and process and now > process["started"] + self.record.deadline:
            (self.directory / "late").touch()

    @property
    def was_late(self) -> bool:
        """Whether it ran into its deadline."""
        return (self.directory / "late").exists()

    def disrupt(self) -> None:
        """Says that the owner goes: the pod saves its state, and its end is no fault of it."""
        if self.supervisor and self.supervisor.stdin:
            self.supervisor.stdin.close()

    def kill(self) -> None:
        """Ends everything at once."""
        for pid in tagged(self.record.tag):
            send(pid, signal.SIGKILL)
        if self.supervisor:
            self.supervisor.kill()

    def delete(self) -> None:
        """Asks the pod to go; `collect` completes it."""
        (self.directory / "deleting").touch()
        self.ask_to_end()

    def collect(self) -> None:
        """After the end: frees scratch space; a deleted pod leaves its log and nothing else."""
        shutil.rmtree(self.directory / "tmp", ignore_errors=True)
        if self.is_deleting:
            (self.directory / "pod.json").replace(self.directory / GONE)

    def observed(self) -> Pod:
        """The pod as a plan sees it."""
        phase, ended = self.phase, self._exit() or {}
        code = ended.get("code", 137) if phase == "Failed" else ended.get("code")
        lost = phase == "Failed" and not ended
        text = self._message(phase)
        return Pod(
            name=self.directory.name,
            completion_index=self.record.completion_index,
            phase=phase,
            exit_code=code if phase in ("Succeeded", "Failed") else None,
            reason=self._reason(phase, lost),
            message=text,
            is_disrupted=bool(ended.get("disrupted")) or lost,
            finished_at=ended.get("finished"),
            result=parse_result(text) if phase in ("Succeeded", "Failed") else None,
        )

    def _reason(self, phase: PodPhase, is_lost: bool) -> str | None:
        if phase == "Pending":
            return "WaitingForDevices" if self.record.devices else None
        return "Lost" if is_lost else None

    def _message(self, phase: PodPhase) -> str:
        """The termination message; after a failure without one, the end of the log."""
        try:
            text = (self.directory / TERMINATION_LOG).read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        return text or (tail(self.directory / "log.txt") if phase == "Failed" else "")

    def _exit(self) -> dict[str, Any] | None:
        return _read(self.directory / "exit.json")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # not there, or torn by a crash of the machine
    return value if isinstance(value, dict) else None


def _write(path: Path, value: dict[str, Any]) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(value), encoding="utf-8")
    draft.replace(path)
