"""Generation of responses."""

from rlhf_trainer.rollout.native import Responses, generate

__all__ = ["Responses", "generate"]
