"""The stages, in the order of a pipeline. Each is imported when it is run: imports cost seconds."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Final

from rlhf_api.run import StageResult

from rlhf_trainer.session import Session

Train = Callable[[Session], StageResult]

STAGES: Final[dict[str, str]] = {
    "sft": "rlhf_trainer.stages.sft",
    "reward": "rlhf_trainer.stages.reward",
    "ppo": "rlhf_trainer.stages.ppo",
    "dpo": "rlhf_trainer.stages.dpo",
}


def load(stage: str) -> Train:
    """The `train` of a stage's module."""
    train: Train = import_module(STAGES[stage]).train
    return train
