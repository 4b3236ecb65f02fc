"""What is there: child Jobs with pods, progress, states of local files. Plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from pydantic import ValidationError
from rlhf_api.run import StageResult
from rlhf_api.status import SchedulingStatus

from rlhf_operator.messages import plain_name, plain_word

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
    outlived_by: tuple[str, ...] = ()  # containers of others that run on after the trainer's end

    @property
    def is_live(self) -> bool:
        """Whether its processes may still write: True until somebody has seen them end."""
        return self.phase not in ("Succeeded", "Failed")

    @property
    def has_started(self) -> bool:
        """Whether its processes have been seen."""
        return self.phase != "Pending"

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
    is_orphaned: bool = False  # its Job went without its pods, which nobody but us will end
    is_whole: bool = True  # Service, ConfigMap and gang object are there too, as they were made
    is_suspended: bool = False  # its Job's spec.suspend: a queue has not let it in, or not again
    has_queue: bool = True  # whether a queue is to do so; else somebody did that no pass knows of
    lost_a_node: bool = False  # told by its Job alone, also where nobody looked at that time
    queue_message: str = ""  # why, in the queue's own words; empty where they are not known
    refused: str = ""  # why its missing pods cannot be made; empty where nobody says so
    unclaimed: str = ""  # why its pods' ResourceClaims cannot be made; empty where nobody says so
    unlabelled: tuple[str, ...] = ()  # pods that have lost a label, so that no watch tells of them
    made_at: datetime | None = None  # its Job, by the clock of whoever keeps it

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
    def is_untold(self) -> bool:
        """Whether nobody has said or done anything about it yet: neither a scheduler nor a kubelet,
        nor a queue or whoever ends it. Who holds back its Job without having been asked to, may
        yet say why."""
        is_held = self.is_suspended and (self.has_queue or bool(self.queue_message))
        has_begun = any(pod.node or pod.reason or pod.has_started for pod in self.pods)
        return not (self.condition or self.is_terminating or is_held or has_begun)

    @property
    def goes_on(self) -> bool:
        """Whether its Job is at work: it has not ended, nor does a queue or a deletion hold it."""
        return self.condition is None and not self.is_terminating and not self.is_suspended

    @property
    def finished_at(self) -> datetime | None:
        """When the last of its pods ended; None where that is not known of each."""
        times = [pod.finished_at for pod in self.pods]
        known = [at for at in times if at is not None]
        is_known = bool(times) and len(known) == len(times)
        return datetime.fromtimestamp(max(known), UTC) if is_known else None

    @property
    def is_bound(self) -> bool:
        """Whether a pod of it is on a node, and so holds devices."""
        return any(pod.is_live and (pod.node or pod.has_started) for pod in self.pods)

    @property
    def is_scheduled(self) -> bool:
        """Whether every pod of it is on a node."""
        return self._all_made and all(pod.node or pod.has_started for pod in self.pods)

    @property
    def is_running(self) -> bool:
        """Whether every pod of it has started, and one still runs."""
        runs = any(pod.phase == "Running" for pod in self.pods)
        return self._all_made and runs and all(pod.has_started for pod in self.pods)

    @property
    def all_run(self) -> bool:
        """Whether every pod of it is seen to run."""
        return self._all_made and all(p.phase == "Running" and not p.is_lost for p in self.pods)

    @property
    def is_lost(self) -> bool:
        """Whether nobody can see of a pod of it whether it ended."""
        return any(pod.is_lost for pod in self.pods)

    @property
    def _all_made(self) -> bool:
        return len(self.pods) >= self.size


def numbered(attempts: Iterable[Attempt], number: int) -> Attempt | None:
    """What is left of the attempt of this number, among those of one stage."""
    return next((attempt for attempt in attempts if attempt.number == number), None)


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
    scheduling: SchedulingStatus | None = None  # the gang scheduler of its pods
    left_over: tuple[tuple[str, int], ...] = ()  # attempts without Job and pods: a Service, …
    is_interrupted: bool = False  # whoever runs its pods on this machine was told to stop
    image: str | None = None  # trainer image of jobs that name none
    directory: str = ""  # of a run on this machine; empty on a cluster

    def of(self, stage: str) -> tuple[Attempt, ...]:
        """A stage's attempts that have left something, oldest first."""
        return tuple(sorted((a for a in self.attempts if a.stage == stage), key=lambda a: a.number))


def parse_result(text: str) -> StageResult | None:
    """The termination message, or None where the text is something else (a log's last lines).

    Any image may have written it, and only words that a status takes are taken from it.
    """
    try:
        result = StageResult.model_validate_json(text, by_alias=True, by_name=False)
    except ValidationError:
        return None
    metrics = {plain_name(name): value for name, value in result.metrics.items()}
    return result.model_copy(update={"reason": plain_word(result.reason), "metrics": metrics})
