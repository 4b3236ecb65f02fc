"""What is there: child Jobs with pods, progress, states of local files. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from pydantic import ValidationError
from rlhf_api.run import StageResult

PodPhase = Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"]


class Pod(NamedTuple):
    """One pod of an attempt."""

    name: str
    completion_index: int
    phase: PodPhase = "Pending"
    exit_code: int | None = None
    reason: str | None = None  # Evicted, OOMKilled, NodeLost, Unschedulable, …
    message: str = ""  # the termination message as text, or the last lines of the log
    is_disrupted: bool = False  # carries the condition DisruptionTarget
    finished_at: float | None = None  # unix seconds; orders the pods that failed
    node: str | None = None
    result: StageResult | None = None

    @property
    def is_live(self) -> bool:
        """Whether its processes may still write: True until somebody has seen them end."""
        return self.phase not in ("Succeeded", "Failed")

    @property
    def is_lost(self) -> bool:
        """Whether its node does not answer, so that nobody can see whether it ended."""
        return self.phase == "Unknown" or (self.is_live and self.reason == "NodeLost")


class Attempt(NamedTuple):
    """One attempt's child Job with its pods; or pods alone, where their Job went before them."""

    stage: str
    number: int
    hash: str
    settings: str
    size: int = 1  # pods of the gang
    pods: tuple[Pod, ...] = ()
    condition: Literal["Complete", "Failed"] | None = None
    reason: str | None = None  # of the Job's condition: DeadlineExceeded, BackoffLimitExceeded, …
    is_terminating: bool = False  # deletion has begun
    is_whole: bool = True  # Service, ConfigMap and gang object are there, too

    @property
    def is_live(self) -> bool:
        """Whether any of its pods may still write."""
        return any(pod.is_live for pod in self.pods)

    @property
    def has_ended(self) -> bool:
        """Whether all that will ever be known of it is known."""
        succeeded = [pod for pod in self.pods if pod.phase == "Succeeded"]
        is_known = self.condition is not None or len(succeeded) >= self.size
        return is_known and not self.is_live

    @property
    def is_running(self) -> bool:
        """Whether a pod of it has started."""
        return any(pod.phase == "Running" for pod in self.pods)


class Progress(NamedTuple):
    """The newest report of a trainer."""

    percent: float | None = None
    remaining_seconds: float | None = None
    metrics: Mapping[str, float] = {}


class Observed(NamedTuple):
    """All that a pass looks at besides the RLHFJob itself."""

    attempts: tuple[Attempt, ...] = ()
    progress: Mapping[tuple[str, int], Progress] = {}  # by stage and attempt
    fingerprints: Mapping[str, str] = {}  # by source URI; local files only

    def of(self, stage: str) -> tuple[Attempt, ...]:
        """A stage's attempts that have left something, oldest first."""
        return tuple(sorted((a for a in self.attempts if a.stage == stage), key=lambda a: a.number))


def parse_result(text: str) -> StageResult | None:
    """The termination message, or None where the text is something else (a log's last lines)."""
    try:
        return StageResult.model_validate_json(text, by_alias=True, by_name=False)
    except ValidationError:
        return None
