"""Bytes of the volume that holds checkpoints and outputs."""

from __future__ import annotations

from rlhf_api.job import RLHFJob
from rlhf_api.stages import AnyStage, PPOStage, RewardStage
from rlhf_api.stages.common import Supervised

from rlhf_planner.architecture import Architecture
from rlhf_planner.memory import Models, trainable, trained_models, weight_bytes


def of_a_checkpoint(stage: AnyStage, models: Models, on_gpu: bool = True) -> float:
    """One checkpoint of the training state: the optimizer's, and beside it, unless ZeRO-3 leaves
    them out, the weights. PPO's weights to go back to, and its average, are extra."""
    width = weight_bytes(stage, on_gpu)
    state = 12 if width == 2 else 8
    beside = 0 if stage.zero.stage == 3 else width
    found = sum(
        trainable(stage, model) * (state + beside) for _, model in trained_models(stage, models)
    )
    if isinstance(stage, PPOStage):
        extra = (width if stage.max_kl is not None else 0) + (4 if stage.ema is not None else 0)
        found += extra * trainable(stage, models.policy)
    return found


def of_a_job(job: RLHFJob, models: Models) -> float:
    """The volume while its fullest stage writes: with the model that was fetched, without rows."""
    policy = models.policy
    fetched = job.spec.model.source.startswith(("hf://", "s3://", "gs://"))
    done = needed = _output(policy, True) if fetched else 0.0
    for name, stage in job.spec.stages.present().items():
        on_gpu = job.spec.resources_of(name).gpus_per_node > 0
        output = _output(models.reward if isinstance(stage, RewardStage) else policy, on_gpu)
        best = output if isinstance(stage, Supervised) and stage.keep_best else 0.0
        kept, state = stage.checkpointing.keep, of_a_checkpoint(stage, models, on_gpu)
        needed = max(needed, done + (kept + 1) * state + kept * best + output)
        done += state + best + output
    return needed


def _output(model: Architecture, on_gpu: bool) -> float:
    return (2.0 if on_gpu else 4.0) * model.parameters
