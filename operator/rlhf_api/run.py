"""What passes between operator and trainer: the stage file, the termination message, exit codes.

All paths are relative to the pod's working directory (`/rlhf` in a container, a directory with
links to the volumes on one machine), so that one description serves both.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any, Final, Literal

from pydantic import Field, field_validator

from rlhf_api.base import Contract
from rlhf_api.data import DataSource, ModelSource
from rlhf_api.job import Evaluation, Stages
from rlhf_api.stages import AnyStage
from rlhf_api.status import PREPARE as PREPARE
from rlhf_api.status import CheckpointRef

WORKDIR: Final = "/rlhf"
STAGE_FILE: Final = "config/stage.yaml"
SECRETS: Final = "secrets"
"""Folder with a folder for each Secret, in which each key is a file."""
DEVICES: Final = "RLHF_DEVICES"
"""Variable with the number of devices that a pod was given. A trainer that sees none of them would
train on the CPU."""
GANG_INCOMPLETE: Final = "GangIncomplete"
"""Reason of a pod that ended because others of its gang did not come."""
PEER_LOST: Final = "PeerLost"
"""Reason of a pod that ended because another of its gang had: that one tells why."""
TERMINATION_LOG: Final = "termination/message.json"
MANIFEST: Final = "manifest.json"
TERMINATION_LIMIT: Final = 4096
"""Bytes of a termination message that a kubelet keeps."""

SAVED_STEP: Final = "checkpoint/step"
"""Metric of progress reports: the step of the newest committed training state. What a fault costs
is told from it."""


class ExitCode(IntEnum):
    """How the trainer ends (the table in docs/reference/conditions.md)."""

    DONE = 0
    CONFIGURATION = 64  # bad configuration or data: never retried
    CHECKPOINT = 65  # the checkpoint or an input is unusable
    DIVERGED = 66  # NaN or Inf again after a roll-back
    TRANSIENT = 75  # worth another try: an endpoint down, a peer lost
    TERMINATED = 143  # SIGTERM; state saved


class JobRef(Contract):
    """Whose attempt this is."""

    name: str = Field(description="RLHFJob's name.")
    namespace: str = Field(description="RLHFJob's namespace.")
    uid: str = Field(description="RLHFJob's UID; part of the checkpoint lineage.")


class Input(Contract):
    """A model that a stage starts from or uses."""

    path: str = Field(description="Directory in Hugging Face layout.")
    digest: str | None = Field(
        default=None, description="Digest of its manifest.json, where a stage of this job made it."
    )
    init: Literal["pretrained", "random"] = Field(
        default="pretrained", description="Where weights come from."
    )


class Demonstrations(Contract):
    """The SFT data, as the reward stage reads them: its scores are normalised on their answers."""

    data: DataSource = Field(description="spec.stages.sft.data; its training part counts.")
    max_length: int = Field(
        ge=8,
        le=1_048_576,
        description="Tokens of a dialogue at most, that both stages read whole; a longer one is "
        "left out.",
    )

    @classmethod
    def of(cls, stages: Stages) -> Demonstrations | None:
        """Those of a job; None where its reward stage normalises on its own data, or has to."""
        sft, reward = stages.sft, stages.reward
        if sft is None or sft.command is not None or reward is None:
            return None
        if reward.normalise_on not in ("auto", "demonstrations"):
            return None
        return cls(data=sft.data, max_length=min(sft.max_length, reward.max_length))


class StageRun(Contract):
    """The stage file: all that one attempt needs to know."""

    job: JobRef = Field(description="Whose attempt this is.")
    stage: str = Field(description="prepare, or the name of a stage.")
    attempt: int = Field(ge=1, description="Number of the attempt.")
    hash: str = Field(description="Input hash of the stage.")
    seed: int = Field(description="Seed of every random draw.")
    model: ModelSource = Field(description="The job's base model, as the user wrote it.")
    stages: Stages = Field(
        description="The one stage with its settings; for prepare, all stages of the job."
    )
    inputs: dict[str, Input] = Field(
        default_factory=dict,
        description="Models by role: base (spec.model), policy (what the stage starts from), "
        "reward (the reward stage's output).",
    )
    paths: dict[str, str] = Field(
        default_factory=dict,
        description="Path of each source (model, data set, code folder) as it is mounted.",
    )
    sources: dict[str, str] = Field(
        default_factory=dict,
        description="Digest of each source, by its field in the spec, as prepare saw it.",
    )
    lineage: str = Field(description="Directory of all attempts on this hash.")
    output: str = Field(description="Directory of this attempt alone, below lineage.")
    store: str | None = Field(
        default=None,
        description="Folder in an object store that lineage and output belong to; on the pod's "
        "own disk they are then but a copy.",
    )
    store_secret: str | None = Field(
        default=None, description="Secret with the credentials of the store."
    )
    evaluation: Evaluation | None = Field(default=None, description="Prompts to answer at the end.")
    demonstrations: Demonstrations | None = Field(
        default=None, description="For the reward stage: the SFT data, where it normalises on them."
    )

    @property
    def config(self) -> AnyStage:
        """The settings of this run's stage."""
        return self.stages.present()[self.stage]


class StageResult(Contract):
    """The termination message: how the attempt ended. At most TERMINATION_LIMIT bytes as JSON."""

    exit_code: int = Field(description="An ExitCode.")
    reason: str = Field(description="One CamelCase word.", examples=["Done", "BadData", "Diverged"])
    message: str = Field(
        default="",
        max_length=1024,
        description="A sentence for people. Of prepare its warnings follow, a line each.",
    )
    step: int | None = Field(default=None, description="Steps (PPO: rollouts) done.")
    checkpoint: CheckpointRef | None = Field(default=None, description="The committed output.")
    metrics: dict[str, float] = Field(
        default_factory=dict, description="Final metrics; what is no finite number is left out."
    )
    sources: dict[str, str] = Field(
        default_factory=dict,
        description="From prepare: digest of each source, by its field in the spec.",
    )

    @field_validator("metrics", mode="before")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        """A metric that came to nothing takes no result along with it."""
        if not isinstance(value, dict):
            return value
        return {k: v for k, v in value.items() if not isinstance(v, float) or math.isfinite(v)}
