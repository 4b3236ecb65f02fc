"""The RLHFJob resource: what a user wants, and what the operator says of it."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from rlhf_api.base import Contract, LabelValue, ObjectName
from rlhf_api.data import DataSource, ModelSource
from rlhf_api.lists import KeyedBy
from rlhf_api.pods import Environment, Image, PullPolicy, SecretMounts
from rlhf_api.resources import Resources
from rlhf_api.scheduling import Scheduling
from rlhf_api.stages import AnyStage, DPOStage, PPOStage, RewardStage, SFTStage
from rlhf_api.stages.ppo import FunctionReward, StopStrings
from rlhf_api.status import PREPARE, JobStatus, StageStatus
from rlhf_api.storage import Checkpoints

GROUP: Final = "rlhf.dev"
VERSION: Final = "v1alpha1"
KIND: Final = "RLHFJob"
PLURAL: Final = "rlhfjobs"
DEFAULT_IMAGE: Final = "rlhf-trainer:0.1.0"


class Evaluation(Contract):
    """Prompts that every policy of the pipeline answers, so that models can be compared by eye."""

    prompts: DataSource = Field(description="Prompts that no stage trains on.")
    limit: int = Field(default=64, ge=1, le=100_000, description="Prompts to answer.")
    shown: int = Field(
        default=12, ge=0, le=200, description="Prompts whose answers the report shows."
    )
    max_new_tokens: int = Field(
        default=128, ge=1, le=65536, description="Tokens of an answer at most."
    )
    temperature: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="0 takes the likeliest token, else sampling by the seed.",
    )
    stop: StopStrings | None = Field(
        default=None,
        description="Texts that end an answer and stay in it, as ppo.rollout.stop; default: none.",
        examples=[["</answer>"]],
    )
    score: FunctionReward | None = Field(
        default=None,
        description="A judge of the user's; its mean over the answers is the metric eval/score.",
    )


class Stages(Contract):
    """The stages of a pipeline, in the order of their edges; each may be left out."""

    sft: SFTStage | None = Field(default=None, description="Supervised fine-tuning.")
    reward: RewardStage | None = Field(default=None, description="Reward model.")
    ppo: PPOStage | None = Field(default=None, description="PPO against the reward.")
    dpo: DPOStage | None = Field(default=None, description="DPO; a branch beside PPO.")

    def present(self) -> dict[str, AnyStage]:
        """The stages that are there, by name, each after those it may start from."""
        every = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: stage for name, stage in every.items() if stage is not None}

    def parents(self, stage: str) -> dict[str, str]:
        """Stages whose outputs a stage takes, by role: policy, reward. KeyError for no stage."""
        config = self.present()[stage]
        starts_afresh = isinstance(config, RewardStage) and not config.may_start_from_sft
        roles: dict[str, str] = {}
        if self.sft and stage != "sft" and not starts_afresh:
            roles["policy"] = "sft"
        if self.reward and isinstance(config, PPOStage) and config.may_take_reward_stage:
            roles["reward"] = "reward"
        return roles

    def followers(self, stage: str) -> list[str]:
        """The stages that take the output of this one, in the order in which they run."""
        return [name for name in self.present() if stage in self.parents(name).values()]


class JobSpec(Contract):
    """Model, data, stages."""

    model: ModelSource = Field(description="The pretrained model that the pipeline starts from.")
    stages: Stages = Field(description="Which stages run, and how.")
    seed: int = Field(default=42, ge=0, le=2**31 - 1, description="Seed of every random draw.")
    image: Image | None = Field(
        default=None, description="Trainer image; default: the operator's own version of it."
    )
    image_pull_policy: PullPolicy | None = Field(
        default=None, description="When images are pulled; default: Kubernetes' own rule."
    )
    image_pull_secrets: Annotated[list[ObjectName], KeyedBy()] = Field(
        default_factory=list, max_length=16, description="Secrets that images are pulled with."
    )
    env: Environment = Field(
        default_factory=list, description="Environment variables of all pods of the job."
    )
    secrets: SecretMounts = Field(
        default_factory=list, description="Secrets that all pods of the job find as files."
    )
    checkpoints: Checkpoints = Field(
        default_factory=Checkpoints, description="Where checkpoints live."
    )
    resources: Resources = Field(
        default_factory=Resources, description="Devices and memory of each stage."
    )
    scheduling: Scheduling = Field(
        default_factory=Scheduling, description="Gang scheduling and queues."
    )
    evaluation: Evaluation | None = Field(
        default=None, description="Fixed prompts that each policy answers; default: none."
    )
    suspend: bool = Field(
        default=False, description="Stop, and keep checkpoints, until it is false again."
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=2**31 - 1,
        description="Seconds after which Jobs and pods of ended attempts are deleted, never the "
        "RLHFJob or its checkpoints; default: they stay until the RLHFJob goes.",
    )

    def resources_of(self, stage: str) -> Resources:
        """What a stage of the job asks for: its own on top of the job's. KeyError for no stage."""
        return self.resources.overridden_by(self.stages.present()[stage].resources)


class ObjectMeta(Contract):
    """The part of Kubernetes' ObjectMeta that the planner reads; the rest passes through unread."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        max_length=40,
        description="Name of the job; children are named after it, so 40 characters at most.",
    )
    namespace: str = Field(
        default="default",
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        max_length=63,
        description="Namespace.",
    )
    labels: dict[str, LabelValue] | None = Field(
        default=None, description="By which people and tools select the job."
    )
    annotations: dict[str, str] | None = Field(
        default=None, description="What people and tools note down; `rlhf.dev/…` are ours to read."
    )
    uid: str = Field(default="", description="Set by the API server.")
    generation: int = Field(default=1, description="Set by the API server.")
    deletion_timestamp: str | None = Field(
        default=None, description="Set by the API server, once somebody has asked for the deletion."
    )
    finalizers: list[str] | None = Field(
        default=None, description="What others do before the object goes."
    )


class RLHFJob(Contract):
    """One pipeline: SFT, reward model, PPO, DPO."""

    api_version: Literal["rlhf.dev/v1alpha1"] = Field(description="rlhf.dev/v1alpha1.")
    kind: Literal["RLHFJob"] = Field(description="RLHFJob.")
    metadata: ObjectMeta = Field(description="Kubernetes metadata.")
    spec: JobSpec = Field(description="What is wanted.")
    status: JobStatus | None = Field(default=None, description="What is; written by the operator.")

    @classmethod
    def parse(cls, obj: dict[str, Any]) -> RLHFJob:
        """The job in a decoded manifest; camelCase only. Raises pydantic.ValidationError."""
        return cls.model_validate(obj, by_alias=True, by_name=False)

    def stage_statuses(self) -> dict[str, StageStatus]:
        """That of `prepare` and of each stage of the spec, in the order in which they run."""
        status = self.status or JobStatus()
        return {name: status.of(name) for name in (PREPARE, *self.spec.stages.present())}
