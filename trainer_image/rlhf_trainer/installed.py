"""What a stage needs beyond the trainer's own requirements."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from rlhf_api.run import StageRun
from rlhf_api.stages.ppo import PPOStage

from rlhf_trainer.errors import ConfigurationError

ENGINE: Final = "spec.stages.ppo.rollout.engine"


def refuse_missing(config: PPOStage) -> None:
    """ConfigurationError where the rollout engine that the stage names is not installed."""
    if config.rollout.engine == "vllm" and find_spec("vllm") is None:
        raise ConfigurationError(
            f"{ENGINE}: vLLM is not installed here; run the stage in an image that was built with "
            'EXTRAS="trainer trackers vllm", install rlhf-operator[vllm], or set it to native'
        )


def refuse_missing_for_stages(run: StageRun) -> None:
    """The same before any stage gets GPUs, of those that run in this very image."""
    for stage in run.stages.present().values():
        if isinstance(stage, PPOStage) and stage.image is None and not stage.command:
            refuse_missing(stage)
