"""What the operator says of a job. The same on a cluster and in a local run's status.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlhf_api.base import Contract

StagePhase = Literal["Pending", "Waiting", "Running", "Succeeded", "Failed", "Suspended"]
JobPhase = Literal["Pending", "Running", "Succeeded", "Failed", "Suspended"]


class Condition(Contract):
    """As metav1.Condition."""

    type: str = Field(description="Ready, Reconciling, Stalled, Suspended, …")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(description="One CamelCase word for programs.", max_length=256)
    message: str = Field(default="", description="A sentence for people.", max_length=1024)
    last_transition_time: str = Field(description="When status last changed; RFC 3339.")
    observed_generation: int | None = Field(default=None, description="Generation it speaks of.")


class CheckpointRef(Contract):
    """A committed checkpoint or output: where it is, and the SHA-256 of its manifest.json."""

    uri: str = Field(description="Path below the checkpoint volume, or object-store address.")
    digest: str = Field(description="sha256:<hex> of the directory's manifest.json.")


class FinishedRun(Contract):
    """A result that was reached; a later pass with the same hash takes it instead of training."""

    hash: str = Field(description="Input hash of the stage.")
    attempt: int = Field(description="Attempt that reached it.")
    checkpoint: CheckpointRef = Field(description="The stage's output.")
    metrics: dict[str, float] = Field(default_factory=dict, description="Final metrics.")
    start_time: str | None = Field(default=None, description="RFC 3339.")
    completion_time: str | None = Field(default=None, description="RFC 3339.")


class AttemptEnd(Contract):
    """How an attempt ended; written in the very write that counts it, so nothing counts twice."""

    attempt: int = Field(ge=1, description="Number of the attempt.")
    kind: Literal["Done", "Fault", "Final", "Disruption", "Stopped"] = Field(
        description="Fault draws on the retry budget; Final is never retried; Disruption (the "
        "cluster ended it) and Stopped (we ended it) are free."
    )
    exit_code: int | None = Field(default=None, description="Exit code of the pod that ended it.")
    reason: str = Field(description="One CamelCase word.", max_length=256)
    message: str = Field(default="", description="A sentence for people.", max_length=1024)
    pod: str | None = Field(default=None, description="The pod that caused the end.")
    time: str = Field(description="RFC 3339.")


class StageStatus(Contract):
    """One stage."""

    phase: StagePhase = Field(default="Pending", description="For display only.")
    attempt: int = Field(default=0, description="Number of the newest attempt; only rises.")
    faults: int = Field(default=0, description="Attempts of this hash that ended in a fault.")
    disruptions: int = Field(default=0, description="Attempts of this hash that the cluster ended.")
    hash: str | None = Field(default=None, description="Input hash the newest attempt works on.")
    settings: str | None = Field(
        default=None,
        description="Digest of all that the newest attempt was started with.",
    )
    ended: AttemptEnd | None = Field(
        default=None, description="End of the newest attempt that ended; a newer one is under way."
    )
    reason: str | None = Field(default=None, description="Why it waits or failed, one word.")
    message: str | None = Field(
        default=None, description="Why it waits or failed.", max_length=1024
    )
    start_time: str | None = Field(
        default=None, description="Start of the newest attempt, RFC 3339."
    )
    completion_time: str | None = Field(default=None, description="End of the stage, RFC 3339.")
    retry_time: str | None = Field(default=None, description="When the next attempt may start.")
    progress_percent: float | None = Field(default=None, description="Share done, in percent.")
    remaining_seconds: float | None = Field(default=None, description="Estimate of the time left.")
    metrics: dict[str, float] = Field(default_factory=dict, description="Newest metrics.")
    checkpoint: CheckpointRef | None = Field(default=None, description="The stage's output.")
    finished: list[FinishedRun] = Field(
        default_factory=list, description="Results that were reached, newest first."
    )


class JobStatus(Contract):
    """The whole pipeline."""

    observed_generation: int = Field(
        default=-1, description="Generation that this status speaks of."
    )
    phase: JobPhase = Field(default="Pending", description="For display only.")
    conditions: list[Condition] = Field(
        default_factory=list, description="Ready, Reconciling, Stalled, …"
    )
    prepare: StageStatus | None = Field(
        default=None, description="Fetching and checking of models and data."
    )
    sources: dict[str, str] = Field(
        default_factory=dict,
        description="Digest of each model and data set, by its field in the spec.",
    )
    stages: dict[str, StageStatus] = Field(default_factory=dict, description="By name.")
    start_time: str | None = Field(default=None, description="RFC 3339.")
    completion_time: str | None = Field(default=None, description="RFC 3339.")
