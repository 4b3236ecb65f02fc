"""What the update of PPO and its relatives computes of one micro-batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rlhf_api.stages import PPOStage
from rlhf_trainer.models.actor_critic import TokenScores
from rlhf_trainer.models.scored_lm import token_batch
from rlhf_trainer.ppo.update import MicroBatch, _actor_loss

LOGPROBS, REF = [-1.0, -2.0, -0.5], [-1.5, -1.0, -0.7]
GRPO = {"advantage": "grpo", "rollout": {"samplesPerPrompt": 2}}


def actor_loss(changes: dict[str, Any], kl_coef: float) -> torch.Tensor:
    """Of three tokens in two responses, before the first step of an update."""
    config = PPOStage.model_validate({"data": {"source": "unused"}} | GRPO | changes)
    logprobs, ref = torch.tensor(LOGPROBS), torch.tensor(REF)
    zeros, ones = torch.zeros(3), torch.ones(3)
    tokens = token_batch([[1], [1]], [[40, 41], [42]], "cpu")
    batch = MicroBatch(tokens, ones.bool(), logprobs, ref, zeros, ones, ones, ones, 3)
    return _actor_loss(config, batch, TokenScores(logprobs, None, None), True, kl_coef)[0]


@pytest.mark.parametrize(
    ("estimator", "kl"),
    [("k1", -0.1), ("k2", 0.215), ("k3", (0.10653066 + 0.71828183 + 0.01873075) / 3)],
)
def test_grpo_adds_the_kl_by_the_estimator_that_is_named(estimator: str, kl: float) -> None:
    loss = actor_loss({"kl": {"estimator": estimator}}, kl_coef=2.0)
    assert loss.item() == pytest.approx(-1 + 2 * kl, abs=1e-6)
