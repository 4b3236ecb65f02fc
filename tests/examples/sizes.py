"""How much a job needs by the arithmetic of docs/guides/memory.md: bytes of a GPU and a disk."""

from __future__ import annotations

from typing import NamedTuple

from rlhf_api.job import RLHFJob
from rlhf_api.resources import Resources
from rlhf_api.stages import AnyStage, PPOStage
from rlhf_api.stages.common import Supervised


class Model(NamedTuple):
    """A model's shape, from its config.json."""

    parameters: float
    layers: int
    hidden: int
    intermediate: int
    key_value: int  # width of the keys of a token in a layer


QWEN = {
    "0.5B": Model(0.494e9, 24, 896, 4864, 128),
    "1.5B": Model(1.54e9, 28, 1536, 8960, 256),
    "7B": Model(7.62e9, 28, 3584, 18944, 512),
    "14B": Model(14.8e9, 48, 5120, 13824, 1024),
    "32B": Model(32.8e9, 64, 5120, 27648, 1024),
    "72B": Model(72.7e9, 80, 8192, 29568, 1024),
}
"""Qwen2.5 by size; the figures of other models of as many parameters are much the same."""

ADAPTER = 0.012
"""Share of parameters in adapters of rank 16 on all linear layers of these models."""
BUCKETS, LOGITS, CONTEXT = 3e9, 1e9, 2e9
"""DeepSpeed's buckets for each model that trains; logits at once; CUDA and NCCL."""


def a_gpu_needs(stage: AnyStage, model: Model, resources: Resources) -> float:
    """Bytes on each GPU at the stage's worst moment."""
    ranks = resources.nodes * resources.gpus_per_node
    shares = ranks if stage.zero.stage == 3 else 1
    kept = LOGITS + CONTEXT + _trained(stage, model, ranks)
    if isinstance(stage, PPOStage):
        kept += 2 * 2 * model.parameters / shares  # reference and reward model
        if stage.lora is not None:  # the reference is the actor without its adapter
            kept -= 2 * model.parameters / shares
        if stage.advantage == "gae" and stage.critic != "shared":
            kept += _trained(stage, model, ranks)
        rows = -(-stage.global_batch_size // ranks)
        tokens = stage.rollout.max_prompt_length + stage.rollout.max_new_tokens
        cache = 4 * model.layers * model.key_value * rows * tokens
        whole = 2 * model.parameters if stage.zero.stage == 3 else 0
        return kept + max(whole + cache, _activations(stage, model, tokens))
    assert isinstance(stage, Supervised)
    return kept + _activations(stage, model, stage.max_length)


def _trainable(stage: AnyStage, model: Model) -> float:
    return model.parameters * (1 if stage.lora is None else ADAPTER * stage.lora.rank / 16)


def _trained(stage: AnyStage, model: Model, ranks: int) -> float:
    """bf16 weights, fp32 gradients, fp32 copy and two moments; each whole or a share."""
    trainable = _trainable(stage, model)
    parted = max(stage.zero.stage, 1)
    weights, gradients = (ranks if parted == 3 else 1), (ranks if parted >= 2 else 1)
    states = trainable * (4 / gradients + 12 / ranks)
    return states + 2 * model.parameters / weights + min(BUCKETS, 6 * trainable)


def _activations(stage: AnyStage, model: Model, length: int) -> float:
    """Of one micro-batch. Measured with Qwen2 in bf16: 8·intermediate + 24·hidden bytes a token and
    layer, with adapters on all linear layers 1.42 times that."""
    layer = (8 * model.intermediate + 24 * model.hidden) * (1 if stage.lora is None else 1.42)
    kept = 2 * model.hidden if stage.gradient_checkpointing else layer
    tokens = stage.micro_batch_size * length
    return tokens * (model.layers * kept + (layer if stage.gradient_checkpointing else 0))


def state_of(stage: AnyStage, model: Model) -> float:
    """Bytes of one checkpoint of the training state: fp32 copy and moments; beside them, unless
    ZeRO-3 leaves them out, bf16 weights. PPO's weights to go back to, and average, are extra."""
    trainable = _trainable(stage, model)
    models = 1
    extra = 0.0
    if isinstance(stage, PPOStage):
        models = 2 if stage.advantage == "gae" and stage.critic != "shared" else 1
        extra = (2 if stage.max_kl is not None else 0) + (4 if stage.ema is not None else 0)
    return trainable * (models * (12 if stage.zero.stage == 3 else 14) + extra)


def a_disk_needs(job: RLHFJob, model: Model) -> float:
    """Bytes of the checkpoint volume while its fullest stage writes, the last one at the latest."""
    whole = 2 * model.parameters
    needed = done = whole if job.spec.model.source.startswith("hf://") else 0.0
    for stage in job.spec.stages.present().values():
        best = whole if isinstance(stage, Supervised) and stage.keep_best else 0.0
        kept, state = stage.checkpointing.keep, state_of(stage, model)
        needed = max(needed, done + (kept + 1) * state + kept * best + whole)
        done += state + best + whole
    return needed
