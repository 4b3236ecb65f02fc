"""What all training stages share: batches, optimizer, precision, LoRA, ZeRO, checkpoints, gates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from rlhf_api.base import OPERATIONAL, Contract
from rlhf_api.pods import Command, Environment, Image, SecretMounts
from rlhf_api.resources import ResourceOverrides, RetryPolicy


class Schedule(Contract):
    """Learning rate over the steps of a stage."""

    type: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Shape after the warm-up."
    )
    warmup_ratio: float = Field(
        default=0.03,
        ge=0,
        le=1,
        description="Share of all steps in which the rate rises from 0.",
    )
    min_ratio: float = Field(
        default=0.1, ge=0, le=1, description="Rate at the last step, as a share of learningRate."
    )


class LoRA(Contract):
    """Low-rank adapters (Hu et al. 2021) in place of full training."""

    rank: int = Field(default=16, ge=1, le=1024, description="Rank r of the update.")
    alpha: float = Field(default=32.0, gt=0, description="Scale: the update is alpha/r · BA.")
    use_rslora: Annotated[bool, AfterValidator(lambda is_set: is_set or None)] | None = Field(
        default=None,
        description="Rank-stabilised LoRA (Kalajdzievski 2023): the update is alpha/√r · BA, so "
        "that a large rank learns no slower than a small one; default: false.",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: list[Annotated[str, Field(max_length=256)]] | None = Field(
        default=None,
        description="Names of the linear layers that get an adapter; default: all but the head, "
        "routers of experts, and those of Mamba whose weights its kernels read past an adapter.",
        examples=[["q_proj", "v_proj"]],
        max_length=64,
    )
    modules_to_save: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]] | None,
        AfterValidator(lambda names: names or None),
    ] = Field(
        default=None,
        description="Names, or ends of names, of layers that are trained in full beside the "
        "adapters; default: none. Embeddings and head, where a template's tokens are new.",
        examples=[["embed_tokens", "lm_head"]],
        max_length=64,
    )
    output: Literal["merged", "adapter"] = Field(
        default="merged",
        description="What the stage hands on: a whole model with the adapter merged, or (but a "
        "reward model's) the adapter, with its base unless that is a hub's.",
    )


class Zero(Contract):
    """DeepSpeed ZeRO (Rajbhandari et al. 2020): what is partitioned over the ranks."""

    stage: Literal[0, 1, 2, 3] = Field(
        default=0, description="0 none, 1 optimizer state, 2 and gradients, 3 and parameters."
    )
    offload: Literal["none", "cpu"] = Field(
        default="none",
        description="Where the optimizer state lives (and, at stage 3, the parameters).",
    )


class Checkpointing(Contract):
    """When the whole training state is saved, and how many of them stay."""

    every_steps: int | None = Field(
        default=None,
        ge=1,
        le=2**31 - 1,
        description="Optimizer steps (PPO: rollouts) between two; default: a tenth of the stage.",
    )
    keep: int = Field(
        default=2,
        ge=1,
        le=100,
        description="Newest checkpoints that stay while the stage trains; "
        "once it is done, one does.",
    )
    grace_seconds: int = Field(
        default=120,
        ge=30,
        le=7200,
        description="Seconds that a pod has to end its step and to save after SIGTERM (suspension, "
        "an edit, an eviction); what is not saved by then is lost.",
    )


class MetricGate(Contract):
    """Holds the next stages back until a final metric of this one lies in a range."""

    metric: str | None = Field(
        default=None,
        description="Name of a final metric.",
        examples=["eval/accuracy"],
        min_length=1,
        max_length=128,
    )
    min: float | None = Field(default=None, description="Lowest value that passes.")
    max: float | None = Field(default=None, description="Highest value that passes.")
    approval: bool = Field(default=False, description="Wait for a person's approval as well.")


class StageCommon(Contract):
    """Fields of every stage."""

    global_batch_size: int = Field(
        default=64,
        ge=1,
        le=1_000_000,
        description="Rows per optimizer step over all GPUs together.",
    )
    micro_batch_size: Annotated[int, OPERATIONAL] = Field(
        default=4,
        ge=1,
        le=65536,
        description="Rows a GPU computes at once; changes memory, not the result.",
    )
    learning_rate: float = Field(default=1e-5, gt=0, le=1, description="Peak learning rate.")
    schedule: Schedule = Field(default_factory=Schedule, description="Learning-rate schedule.")
    weight_decay: float = Field(
        default=0.0, ge=0, le=1, description="Decoupled weight decay (AdamW)."
    )
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW β₁.")
    adam_beta2: float = Field(default=0.95, ge=0, lt=1, description="AdamW β₂.")
    adam_epsilon: float = Field(default=1e-8, gt=0, le=1e-2, description="AdamW ε.")
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="Gradients are scaled down to this global norm."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="Compute type; `auto` is bf16 on GPUs and fp32 on CPUs."
    )
    gradient_checkpointing: Annotated[bool, OPERATIONAL] = Field(
        default=False,
        description="Recompute activations in the backward pass: less memory, more time.",
    )
    lora: LoRA | None = Field(default=None, description="Train adapters instead of all weights.")
    zero: Zero = Field(default_factory=Zero, description="Partitioning over ranks.")
    checkpointing: Annotated[Checkpointing, OPERATIONAL] = Field(
        default_factory=Checkpointing, description="Checkpoints of the whole training state."
    )
    resources: Annotated[ResourceOverrides | None, OPERATIONAL] = Field(
        default=None, description="Replaces spec.resources field by field for this stage."
    )
    image: Image | None = Field(default=None, description="Image of this stage's pods.")
    command: Command | None = Field(
        default=None,
        description="Command of a trainer that is not ours. It reads config/stage.yaml and "
        "torchrun's PET_* variables, and writes a model to `output` and a termination message.",
        examples=[["torchrun", "train.py"]],
    )
    env: Annotated[Environment, OPERATIONAL] = Field(
        default_factory=list, description="Added to spec.env; a name that is there is replaced."
    )
    secrets: Annotated[SecretMounts, OPERATIONAL] = Field(
        default_factory=list, description="Added to spec.secrets."
    )
    retry: Annotated[RetryPolicy, OPERATIONAL] = Field(
        default_factory=RetryPolicy, description="What a failed attempt leads to."
    )
    gate: Annotated[MetricGate | None, OPERATIONAL] = Field(
        default=None, description="What must hold before later stages start."
    )


class Supervised(StageCommon):
    """Fields of the stages that read a data set in epochs: SFT, reward model, DPO."""

    epochs: float = Field(default=1.0, gt=0, le=1000, description="Passes over the data.")
    max_steps: int | None = Field(
        default=None,
        ge=1,
        le=2**31 - 1,
        description="Optimizer steps at most, whatever the epochs.",
    )
    max_length: int = Field(
        default=1024, ge=8, le=1_048_576, description="Tokens of a row at most."
    )
    eval_every_steps: Annotated[int | None, OPERATIONAL] = Field(
        default=None,
        ge=1,
        le=2**31 - 1,
        description="Steps between evaluations on held-out rows; default: a fifth of the stage.",
    )
    keep_best: bool = Field(
        default=True,
        description="The output is what was best on the held-out rows, not the last state.",
    )
