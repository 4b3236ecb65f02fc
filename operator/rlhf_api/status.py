"""What the operator says of a job. The same on a cluster and in a local run's status.yaml."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from rlhf_api.base import Contract
from rlhf_api.lists import KeyedBy
from rlhf_api.pods import Image

PREPARE: Final = "prepare"
"""The stage of every job that fetches and checks, and trains nothing."""
MOST_METRICS: Final = 128
"""Metrics that a status holds of one stage."""
MOST_RESULTS: Final = 32
"""Results that a stage remembers; what falls out is trained again if its inputs come back."""

StagePhase = Literal["Pending", "Waiting", "Running", "Succeeded", "Failed", "Suspended"]
JobPhase = Literal["Pending", "Running", "Waiting", "Succeeded", "Failed", "Suspended"]
EndKind = Literal["Done", "Fault", "Final", "Disruption", "Stopped"]

Time = Annotated[str, Field(max_length=64)]
"""RFC 3339, UTC, whole seconds."""
Word = Annotated[str, Field(max_length=256)]
"""One CamelCase word, for programs."""
Text = Annotated[str, Field(max_length=1024)]
"""A sentence, for people."""
Digest = Annotated[str, Field(max_length=128)]
"""sha256:<hex>"""
Metrics = Annotated[dict[str, float], Field(max_length=MOST_METRICS)]
"""Values by name."""


class Kept(Contract):
    """A part of a status. Fields that only a newer version of the operator knows stay as they are:
    it may have led for a while, and comes back.

    Each field that is there costs the API server something at each write, also where it is empty.
    """

    model_config = ConfigDict(extra="allow")
    writes_empty = False


class Condition(Kept):
    """As metav1.Condition."""

    type: str = Field(description="Ready, Reconciling, Stalled, Suspended, …", max_length=316)
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: Word = Field(description="One CamelCase word for programs.")
    message: Text = Field(default="", description="A sentence for people.")
    last_transition_time: Time = Field(description="When status last changed; RFC 3339.")
    observed_generation: int | None = Field(default=None, description="Generation it speaks of.")


class CheckpointRef(Contract):
    """A committed checkpoint or output: where it is, and the SHA-256 of its manifest.json."""

    uri: str = Field(
        description="Path below the checkpoint volume, or object-store address.", max_length=2048
    )
    digest: Digest = Field(description="sha256:<hex> of the directory's manifest.json.")


class SavedStep(Kept):
    """The newest training state that was saved in mid-stage; a next attempt goes on from it."""

    step: int = Field(ge=0, description="Optimizer steps (PPO: rollouts) done.")
    time: Time = Field(description="When it was first reported; RFC 3339.")


class FinishedRun(Kept):
    """A result that was reached; a later pass with the same hash takes it instead of training."""

    hash: Digest = Field(description="Input hash of the stage.")
    attempt: int = Field(description="Attempt that reached it.")
    checkpoint: CheckpointRef = Field(description="The stage's output.")
    image: Image | None = Field(default=None, description="Image that it was reached with.")
    metrics: Metrics = Field(default_factory=dict, description="Final metrics.")
    start_time: Time | None = Field(default=None, description="RFC 3339.")
    completion_time: Time | None = Field(default=None, description="RFC 3339.")


class AttemptEnd(Kept):
    """How an attempt ended; written in the very write that counts it, so nothing counts twice."""

    attempt: int = Field(ge=1, description="Number of the attempt.")
    kind: EndKind = Field(
        description="Fault draws on the retry budget; Final is never retried; Disruption (the "
        "cluster ended it) and Stopped (we ended it) are free."
    )
    exit_code: int | None = Field(default=None, description="Exit code of the pod that ended it.")
    reason: Word = Field(description="One CamelCase word.")
    message: Text = Field(default="", description="Last lines of the pod that caused the end.")
    pod: Annotated[str, Field(max_length=253)] | None = Field(
        default=None, description="The pod that caused the end."
    )
    node: Annotated[str, Field(max_length=253)] | None = Field(
        default=None, description="The node that pod was on."
    )
    ranks: Annotated[str, Field(max_length=32)] | None = Field(
        default=None, description="Ranks of that pod's processes.", examples=["3", "8-15"]
    )
    time: Time = Field(description="RFC 3339.")


class Timeline(Kept):
    """When each step of the newest attempt was first seen; RFC 3339."""

    bound: Time | None = Field(
        default=None, description="A pod is on a node: from here on devices are held."
    )
    scheduled: Time | None = Field(default=None, description="Every pod is on a node.")
    running: Time | None = Field(default=None, description="Every pod has started.")
    node_lost: Time | None = Field(
        default=None, description="A pod's node does not answer; until all pods are seen to run."
    )


class GPUSeconds(Kept):
    """Devices times seconds of the attempts that have ended, by what became of that time."""

    useful: int = Field(default=0, ge=0, description="Work whose outcome counts.")
    repeated: int = Field(
        default=0,
        ge=0,
        description="Work that was lost: after the last save before a failure, or on inputs that "
        "changed. Where a trainer does not report its saves, the whole attempt.",
    )
    waiting: int = Field(
        default=0, ge=0, description="Pods were on nodes, and not yet all of them had started."
    )


class StageStatus(Kept):
    """One stage."""

    phase: StagePhase = Field(default="Pending", description="For display only.")
    attempt: int = Field(default=0, description="Number of the newest attempt; only rises.")
    faults: int = Field(default=0, description="Attempts of this hash that ended in a fault.")
    disruptions: int = Field(default=0, description="Attempts of this hash that the cluster ended.")
    restarts: dict[str, int] = Field(
        default_factory=dict,
        max_length=8,
        description="Attempts that followed one that did not finish, by how that one ended: "
        "Fault, Final, Disruption, Stopped. Never reset.",
    )
    hash: Digest | None = Field(default=None, description="Input hash the newest attempt works on.")
    settings: Digest | None = Field(
        default=None,
        description="Digest of all that the newest attempt was started with.",
    )
    image: Image | None = Field(
        default=None, description="Image of the newest attempt's pods, also where it is a default."
    )
    gpus: int = Field(default=0, ge=0, description="Devices of the newest attempt's gang.")
    ended: AttemptEnd | None = Field(
        default=None, description="End of the newest attempt that ended; a newer one is under way."
    )
    reason: Word | None = Field(default=None, description="Why it waits or failed, one word.")
    message: Text | None = Field(default=None, description="Why it waits or failed.")
    start_time: Time | None = Field(
        default=None, description="Start of the newest attempt, RFC 3339."
    )
    timeline: Timeline | None = Field(
        default=None, description="Steps of the newest attempt; what is not yet reached is absent."
    )
    missing_time: Time | None = Field(
        default=None,
        description="When the newest attempt's Job and pods were first not to be seen any more.",
    )
    completion_time: Time | None = Field(default=None, description="End of the stage, RFC 3339.")
    retry_time: Time | None = Field(default=None, description="When the next attempt may start.")
    progress_percent: float | None = Field(default=None, description="Share done, in percent.")
    remaining_seconds: float | None = Field(default=None, description="Estimate of the time left.")
    metrics: Metrics = Field(default_factory=dict, description="Newest metrics.")
    alarms: list[Word] = Field(
        default_factory=list, max_length=16, description="Metrics that are out of bounds."
    )
    saved: SavedStep | None = Field(
        default=None, description="Newest training state on this hash that was saved in mid-stage."
    )
    checkpoint: CheckpointRef | None = Field(default=None, description="The stage's output.")
    gpu_seconds: GPUSeconds | None = Field(
        default=None, description="What the attempts that have ended spent; absent without devices."
    )
    finished: list[FinishedRun] = Field(
        default_factory=list,
        max_length=MOST_RESULTS,
        description="Results that were reached, newest first.",
    )


class SchedulingStatus(Kept):
    """Which gang scheduler the pods go to."""

    gang: Annotated[str, Field(max_length=63)] = Field(description="Name of the gang scheduler.")
    reason: Text = Field(default="", description="Why this one.")


class JobStatus(Kept):
    """The whole pipeline."""

    observed_generation: int = Field(
        default=-1, description="Generation that this status speaks of."
    )
    phase: JobPhase = Field(default="Pending", description="For display only.")
    stage: Annotated[str, Field(max_length=128)] | None = Field(
        default=None,
        description="Stages under way, or the next, and their place among all.",
        examples=["ppo 3/3", "ppo+dpo 3/4"],
    )
    progress: Annotated[str, Field(max_length=16)] | None = Field(
        default=None, description="Share of the stages under way that is done.", examples=["41%"]
    )
    eta: Annotated[str, Field(max_length=32)] | None = Field(
        default=None, description="Time left to the stages under way.", examples=["2h10m"]
    )
    reward: float | None = Field(default=None, description="Newest mean reward of PPO.")
    kl: float | None = Field(default=None, description="Newest KL divergence to the reference.")
    gpus: int = Field(default=0, ge=0, description="Devices of the stages under way.")
    restarts: int = Field(
        default=0, ge=0, description="Attempts that followed one that did not finish."
    )
    checkpoint: Annotated[str, Field(max_length=2048)] | None = Field(
        default=None, description="Address of the newest output."
    )
    scheduling: SchedulingStatus | None = Field(
        default=None, description="The gang scheduler, and why this one."
    )
    storage: Annotated[str, Field(max_length=2048)] | None = Field(
        default=None, description="Where the checkpoints are; fixed by the first attempt."
    )
    conditions: Annotated[list[Condition], KeyedBy("type")] = Field(
        default_factory=list, max_length=32, description="Ready, Reconciling, Stalled, …"
    )
    prepare: StageStatus | None = Field(
        default=None, description="Fetching and checking of models and data."
    )
    sources: dict[str, Digest] = Field(
        default_factory=dict,
        max_length=256,
        description="Digest of each model and data set, by its field in the spec.",
    )
    stages: dict[str, StageStatus] = Field(
        default_factory=dict, max_length=32, description="By name."
    )
    start_time: Time | None = Field(default=None, description="RFC 3339.")
    completion_time: Time | None = Field(default=None, description="RFC 3339.")

    def of(self, stage: str) -> StageStatus:
        """That of a stage, or of `prepare`; where nothing is known of it, one that says nothing."""
        found = self.prepare if stage == PREPARE else self.stages.get(stage)
        return found or StageStatus()

    def every_stage(self) -> dict[str, StageStatus]:
        """`prepare`, then the stages by name, with those that were removed from the spec since."""
        return {PREPARE: self.prepare or StageStatus(), **self.stages}
