"""One pod of a local run: a container that knows whose it is.

pod.json      its record; written last, so where it is, the rest is, too
deleting, late   it was asked to go; it ran into its deadline
termination/message.json, and the links that are its volumes
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final, NamedTuple

from rlhf_api.run import TERMINATION_LOG

from rlhf_operator.local.container import Container, read, write
from rlhf_operator.local.kubelet import termination_message
from rlhf_operator.observed import Pod, PodPhase, parse_result
from rlhf_operator.render.volumes import CHECKPOINTS

SCRATCH: Final = ("tmp", CHECKPOINTS)
"""Where a pod has room of its own, which goes with it."""
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


class LocalPod(Container):
    """A pod by its directory."""

    def __init__(self, directory: Path, record: PodRecord) -> None:
        super().__init__(directory, record.tag)
        self.record = record

    @classmethod
    def read(cls, directory: Path) -> LocalPod | None:
        """The pod of a directory; None where it is not whole, or was deleted."""
        value = read(directory / "pod.json")
        try:
            return cls(directory, PodRecord(**value)) if value else None
        except TypeError:
            return None  # another version's

    def save(self) -> None:
        """Makes the pod exist."""
        write(self.directory / "pod.json", self.record._asdict())

    @property
    def is_deleting(self) -> bool:
        """Whether it was asked to go."""
        return (self.directory / "deleting").exists()

    @property
    def is_live(self) -> bool:
        """Whether any process of it may still write."""
        return self.state in ("starting", "running")

    @property
    def phase(self) -> PodPhase:
        """As Kubernetes would say."""
        match self.state:
            case "ended":
                return "Succeeded" if (self.exit or {}).get("code") == 0 else "Failed"
            case "running":
                return "Running"
            case "waiting" if self.is_deleting:
                return "Failed"
            case _:
                return "Pending"

    def end(self) -> None:
        """Asks it to end within its grace period."""
        self.ask_to_end(self.record.grace)

    def check_deadline(self, now: float) -> None:
        """Marks a pod that has run too long. `now` in unix seconds."""
        started = self.started_at
        if self.record.deadline and started and now > started + self.record.deadline:
            (self.directory / "late").touch()

    @property
    def was_late(self) -> bool:
        """Whether it ran into its deadline."""
        return (self.directory / "late").exists()

    def delete(self) -> None:
        """Asks the pod to go; `collect` completes it."""
        (self.directory / "deleting").touch()
        self.end()

    def collect(self) -> None:
        """After the end: frees scratch space; a deleted pod leaves its log and nothing else."""
        for name in SCRATCH:  # a link stays: behind it is a volume
            shutil.rmtree(self.directory / name, ignore_errors=True)
        if self.is_deleting:
            (self.directory / "pod.json").replace(self.directory / GONE)

    def observed(self) -> Pod:
        """The pod as a plan sees it."""
        phase, ended = self.phase, self.exit or {}
        code = ended.get("code", 137) if phase == "Failed" else ended.get("code")
        lost = phase == "Failed" and not ended
        text = termination_message(
            self.directory / TERMINATION_LOG, self.directory / "log.txt", failed=phase == "Failed"
        )
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
