"""Generation of responses."""

from rlhf_trainer.rollout.native import generate
from rlhf_trainer.rollout.sampling import Responses

__all__ = ["Responses", "generate"]
