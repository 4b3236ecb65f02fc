"""Advantages of a rollout by its estimator, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from rlhf_api.stages import PPOStage
from rlhf_trainer.ppo.experience import TokenFigures, estimate

MASK = torch.tensor([[True, False], [True, True], [True, False], [True, True]])
LOGPROBS = torch.tensor([[-1.0, 0], [-2.0, -1.0], [-1.0, 0], [-0.5, -0.5]])
REF = torch.tensor([[-1.0, 0], [-2.5, -1.0], [-1.0, 0], [-0.5, -1.5]])
SCORES = torch.tensor([1.0, 3.0, 2.0, 6.0])  # of two prompts


def test_reinforce_plus_plus_with_a_baseline_whitens_scores_less_the_mean_of_their_prompt() -> None:
    rollout = {"samplesPerPrompt": 2}
    shape = {"data": {"source": "a"}, "globalBatchSize": 4, "minibatchSize": 4, "gamma": 0.5}
    config = PPOStage.model_validate(
        shape | {"advantage": "reinforce++-baseline", "rollout": rollout}
    )
    tokens = TokenFigures(LOGPROBS, LOGPROBS, REF, torch.zeros(4, 2))
    advantages, returns = estimate(config, SCORES, tokens, MASK, kl_coef=0.2)
    # Means are 2 and 4. KL costs the first token of the second response 0.2 · 0.5, and the last of
    # the fourth 0.2 · 1.
    first, second, third = -1.0, [-0.1 + 0.5 * 1.0, 1.0], -2.0
    fourth = [0.5 * (2.0 - 0.2), 2.0 - 0.2]
    want = [first, *second, third, *fourth]
    assert returns[MASK].tolist() == pytest.approx(want, abs=1e-6)
    mean = sum(want) / 6
    deviation = math.sqrt(sum((x - mean) ** 2 for x in want) / 6)
    assert advantages[MASK].tolist() == pytest.approx(
        [(x - mean) / deviation for x in want], abs=1e-5
    )
    assert not advantages[~MASK].any()
