"""What the update of PPO and its relatives computes of its micro-batches."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rlhf_api.stages import PPOStage
from rlhf_trainer.advantages import spread_over_tokens
from rlhf_trainer.models.actor_critic import TokenScores
from rlhf_trainer.ppo.experience import Experience, Rollout
from rlhf_trainer.ppo.update import _actor_loss, _micro_batches

PROMPTS, RESPONSES = [[1], [1, 3], [1]], [[40, 41, 42], [43], [44, 45]]
LENGTHS = [3, 1, 2]
NEW, OLD, REF = (
    [[-1.0, -2.0, -0.5], [-1.0, 0, 0], [-0.3, -0.9, 0]],
    [[-1.1, -1.9, -0.9], [-1.2, 0, 0], [-0.3, -1.0, 0]],
    [[-1.5, -1.0, -0.7], [-1.0, 0, 0], [-1.0, -1.0, 0]],
)
ADVANTAGES = [2.0, -1.0, 0.5]
GRPO = {"advantage": "grpo", "rollout": {"samplesPerPrompt": 2, "maxNewTokens": 8}, "clip": 0.1}


def actor_loss(changes: dict[str, Any], kl_coef: float, world_size: int = 1) -> float:
    """Of one minibatch of three responses, the sum over all ranks."""
    shape = {"data": {"source": "unused"}, "minibatchSize": 3, "microBatchSize": 3}
    config = PPOStage.model_validate(shape | GRPO | changes)
    new_BT, old_BT, ref_BT = (torch.tensor(x) for x in (NEW, OLD, REF))
    rollout = Rollout(["a", "b", "c"], PROMPTS, RESPONSES, [True] * 3)
    mask_BT, zeros_BT = rollout.mask, torch.zeros(3, 3)
    advantages_BT = spread_over_tokens(torch.tensor(ADVANTAGES), mask_BT)
    figures = (old_BT, ref_BT, zeros_BT, advantages_BT, zeros_BT, torch.ones(3, 3))
    experience = Experience(rollout, mask_BT, *figures)
    total = 0.0
    for rank in range(world_size):
        ranks = SimpleNamespace(rank=rank, world_size=world_size, device="cpu")
        session: Any = SimpleNamespace(ranks=ranks)
        for batch in _micro_batches(session, config, experience, [0, 1, 2]):
            # NEW of the batch's rows, found again by what the old policy said of them
            rows = [old_BT[mask_BT].tolist().index(x) for x in batch.old_logprobs.tolist()]
            scores = TokenScores(new_BT[mask_BT][rows], None, None)
            total += float(_actor_loss(config, batch, scores, True, kl_coef)[0])
    return total


def by_hand(
    how: str, clip: tuple[float, float], kl_coef: float, estimator: str, by_sequence: bool
) -> float:
    """The loss as the papers write it, response by response."""
    total = 0.0
    for i, length in enumerate(LENGTHS):
        logs = [new - old for new, old in zip(NEW[i][:length], OLD[i][:length], strict=True)]
        mean = sum(logs) / length
        of_response = 0.0
        for t in range(length):
            ratio = math.exp(mean if by_sequence else logs[t])
            held = min(max(ratio, 1 - clip[0]), 1 + clip[1])
            x = NEW[i][t] - REF[i][t]
            kl = {"k1": x, "k2": x * x / 2, "k3": math.exp(-x) - 1 + x}[estimator]
            of_response += kl_coef * kl - min(ratio * ADVANTAGES[i], held * ADVANTAGES[i])
        total += (
            of_response / {"token": sum(LENGTHS), "sequence": 3 * length, "constant": 3 * 8}[how]
        )
    return total


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_grpo_adds_the_kl_by_the_estimator_that_is_named(estimator: str) -> None:
    want = by_hand("token", (0.1, 0.1), 2.0, estimator, False)
    assert actor_loss({"kl": {"estimator": estimator}}, 2.0) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("how", ["token", "sequence", "constant"])
def test_tokens_weigh_as_is_asked_for_on_any_number_of_ranks(
    how: str, ratio: str, world_size: int
) -> None:
    changes = {"lossAggregation": how, "ratio": ratio, "clip": 0.02, "clipHigh": 0.03}
    want = by_hand(how, (0.02, 0.03), 2.0, "k1", ratio == "sequence")
    assert actor_loss(changes, 2.0, world_size) == pytest.approx(want, abs=1e-6)
