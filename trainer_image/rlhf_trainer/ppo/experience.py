"""From responses and their scores to what PPO's update needs: advantages, returns, old log-probs.

Every rank holds the experience of the whole global batch. It is small beside the models, whitening
and group baselines then need no reduction, and the numbers are the same however many ranks share
the work.

Shapes: B responses of the global batch, T the longest response, N response tokens of some rows.
Masks: `mask_BT` is True where a token of the response counts, its EOS included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from rlhf_api.stages.ppo import PPOStage
from torch import Tensor

from rlhf_trainer.advantages import (
    gae,
    grpo_advantages,
    reinforce_plus_plus_advantages,
    rloo_advantages,
    spread_over_tokens,
    whiten,
)
from rlhf_trainer.losses import truncated_importance_weights
from rlhf_trainer.ppo.answered import Scores
from rlhf_trainer.ppo.balance import micro_batches_by_prompt
from rlhf_trainer.ranks import Ranks
from rlhf_trainer.rewards import (
    kl_estimate,
    kl_penalty_rewards,
    missing_eos_penalty,
    overlong_penalty,
)


class Rollout(NamedTuple):
    """Sampled responses of the global batch, in the order of their global rows."""

    ids: Sequence[str]  # of the prompts
    prompts: Sequence[Sequence[int]]
    responses: Sequence[Sequence[int]]
    finished: Sequence[bool]
    logprobs: Sequence[Sequence[float]] | None = None  # as the engine that sampled them has them

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row as a policy reads it."""
        return [len(p) + len(r) - 1 for p, r in zip(self.prompts, self.responses, strict=True)]

    @property
    def mask(self) -> Tensor:
        """True at the tokens of each response."""
        length_B = torch.tensor([len(r) for r in self.responses])
        return torch.arange(int(length_B.max())) < length_B[:, None]


class TokenFigures(NamedTuple):
    """What the models say of each response token under the weights that sampled it: (B, T) each."""

    logprobs: Tensor
    entropy: Tensor
    ref_logprobs: Tensor
    values: Tensor  # zeros without a critic


class Experience(NamedTuple):
    """What the update reads, on the CPU."""

    rollout: Rollout
    mask: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    importance_weights: Tensor  # ones where the actor itself sampled


class ScoreFigures(NamedTuple):
    """What the policy's responses to a batch of prompts scored."""

    reward: float  # mean raw score
    reward_normalised: float
    reward_std: float
    reward_clipped_fraction: float  # responses whose score rewardClip changed
    equal_scores_fraction: float  # prompts whose responses tell nothing


class ExperienceFigures(NamedTuple):
    """Means over the global batch, for people and for the controllers."""

    kl: float  # nats a response, summed over its tokens (k1)
    entropy: float  # nats a token
    response_length: float
    eos_fraction: float
    explained_variance: float
    mismatch: dict[str, float]  # of another sampler and the trainer, by the metrics' names


def flat_rows(x_BT: Tensor, mask_BT: Tensor, rows: Sequence[int]) -> Tensor:
    """The True tokens of some rows, row after row: (N,)."""
    index = torch.tensor(rows, dtype=torch.long)
    return x_BT[index][mask_BT[index]]


def score_tokens(
    rollout: Rollout,
    ranks: Ranks,
    capacity: int,
    figures_of: Callable[[Sequence[int]], Sequence[Tensor]],
) -> TokenFigures:
    """Let each rank score its share of the rows, and give all figures to all ranks.

    `figures_of` gets rows (none where this rank has run out of work; it must make its forward
    passes all the same) and gives four tensors (N,) of their response tokens.
    """
    rows = range(len(rollout.prompts))
    everyone = micro_batches_by_prompt(
        rows, rollout.prompts, rollout.lengths, capacity, ranks.world_size
    )
    mine = []
    for micro in everyone[ranks.rank]:
        mine.append((micro, torch.stack([x.float().cpu() for x in figures_of(micro)])))
    mask_BT = rollout.mask
    whole_4BT = torch.zeros(4, *mask_BT.shape)
    for part in ranks.gather_objects(mine):
        for micro, figures_4N in part:
            index = torch.tensor(micro, dtype=torch.long)
            for whole_BT, figure_N in zip(whole_4BT, figures_4N, strict=True):
                box_BT = torch.zeros(mask_BT[index].shape)
                whole_BT[index] = box_BT.masked_scatter(mask_BT[index], figure_N)
    return TokenFigures(*whole_4BT.unbind())


def shaped_scores(config: PPOStage, normalised_B: Tensor, rollout: Rollout) -> Tensor:
    """Clipped scores with the penalties for length, which are never clipped away: (B,)."""
    scores_B = normalised_B.clamp(-config.reward_clip, config.reward_clip)
    if config.missing_eos_penalty:
        finished_B = torch.tensor(rollout.finished)
        scores_B = missing_eos_penalty(scores_B, finished_B, config.missing_eos_penalty)
    if config.overlong_buffer:
        length_B = torch.tensor([len(r) for r in rollout.responses])
        longest = config.rollout.max_new_tokens
        buffer = min(config.overlong_buffer, longest)
        scores_B = scores_B + overlong_penalty(length_B, longest, buffer)
    return scores_B.float()


def equal_groups(config: PPOStage, scores: Scores, rollout: Rollout) -> Tensor:
    """Of each prompt, whether its responses tell nothing: they all score the same, or are the same,
    which a reward model may score differently in its last digits: (G,) bool.
    """
    samples = config.rollout.samples_per_prompt
    shaped_GK = shaped_scores(config, scores.normalised, rollout).view(-1, samples)
    said = [tuple(response) for response in rollout.responses]
    groups = [said[i : i + samples] for i in range(0, len(said), samples)]
    is_one_G = torch.tensor([len(set(group)) == 1 for group in groups])
    return (shaped_GK == shaped_GK[:, :1]).all(-1) | is_one_G


def score_figures(config: PPOStage, scores: Scores, rollout: Rollout) -> ScoreFigures:
    """For people and gates."""
    raw_B, clipped_B = scores.raw, scores.normalised.abs() > config.reward_clip
    return ScoreFigures(
        reward=float(raw_B.mean()),
        reward_normalised=float(scores.normalised.mean()),
        reward_std=float(raw_B.std(correction=0)),
        reward_clipped_fraction=float(clipped_B.double().mean()),
        equal_scores_fraction=float(equal_groups(config, scores, rollout).double().mean()),
    )


def assemble(
    config: PPOStage, rollout: Rollout, tokens: TokenFigures, scores: Scores, kl_coef: float
) -> tuple[Experience, ExperienceFigures]:
    """Rewards, advantages and returns of the global batch, and its figures."""
    mask_BT = rollout.mask
    scores_B = shaped_scores(config, scores.normalised, rollout)
    advantages_BT, returns_BT = estimate(config, scores_B, tokens, mask_BT, kl_coef)
    weights_BT, mismatch = importance(config, rollout, tokens, mask_BT)
    experience = Experience(
        rollout,
        mask_BT,
        tokens.logprobs,
        tokens.ref_logprobs,
        tokens.values,
        advantages_BT,
        returns_BT,
        weights_BT,
    )
    return experience, _figures(experience, tokens, mismatch)


def importance(
    config: PPOStage, rollout: Rollout, tokens: TokenFigures, mask_BT: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """min(π_trainer/π_sampler, cap) of each token (B, T), and how far the two are apart.

    Two engines round differently, so that the same weights give other probabilities: what another
    engine sampled is off-policy by as much. Ones without a cap, and where the actor sampled.
    """
    if rollout.logprobs is None:
        return torch.ones_like(tokens.logprobs), {}
    sampler_BT = torch.zeros_like(tokens.logprobs)
    flat_N = torch.tensor([x for row in rollout.logprobs for x in row], dtype=sampler_BT.dtype)
    sampler_BT[mask_BT] = flat_N
    cap = config.rollout.importance_cap
    found = truncated_importance_weights(tokens.logprobs, sampler_BT, mask_BT, cap or math.inf)
    figures = {
        "ppo/mismatch_kl": float(found.mismatch_kl),
        "ppo/mismatch_abs": float(found.mismatch_abs),
        "ppo/importance_weight": float(found.weight_mean),
        "ppo/importance_capped_fraction": float(found.capped_fraction),
    }
    return torch.ones_like(found.weights) if cap is None else found.weights, figures


def estimate(
    config: PPOStage, scores_B: Tensor, tokens: TokenFigures, mask_BT: Tensor, kl_coef: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (B, T) by the stage's estimator.

    GRPO takes its KL as a term of the loss; of the others it is part of the reward: of each token,
    or for RLOO of the whole response (Ahmadian et al. 2024, sec. 3). REINFORCE++ with a baseline
    takes it from a group's scores alone (Hu et al. 2025).
    """
    samples = config.rollout.samples_per_prompt
    if config.advantage == "reinforce++-baseline":
        scores_B = grpo_advantages(scores_B.view(-1, samples), divide_by_std=False).flatten()
    rewards_BT = kl_penalty_rewards(
        scores_B, tokens.logprobs, tokens.ref_logprobs, mask_BT, kl_coef, config.kl.estimator
    )
    match config.advantage:
        case "gae":
            advantages_BT, returns_BT = gae(
                rewards_BT, tokens.values, mask_BT, config.gamma, config.lam
            )
            if config.whiten_advantages:
                advantages_BT = whiten(advantages_BT, mask_BT)
        case "grpo":
            advantages_B = grpo_advantages(scores_B.view(-1, samples), config.group_std).flatten()
            advantages_BT = returns_BT = spread_over_tokens(advantages_B, mask_BT)
        case "rloo":
            total_B = rewards_BT.sum(-1)
            advantages_B = rloo_advantages(total_B.view(-1, samples)).flatten()
            advantages_BT = returns_BT = spread_over_tokens(advantages_B, mask_BT)
        case "reinforce++" | "reinforce++-baseline":
            advantages_BT, returns_BT = reinforce_plus_plus_advantages(
                rewards_BT, mask_BT, config.gamma
            )
    return advantages_BT, returns_BT


def kl_per_response(tokens: TokenFigures, mask_BT: Tensor) -> float:
    """Mean over responses of Σ_t log π − log π_ref, nats (k1, whatever the penalty's)."""
    kl_BT = kl_estimate(tokens.logprobs, tokens.ref_logprobs, "k1")
    return float(kl_BT.where(mask_BT, 0.0).sum(-1).double().mean())


def _figures(
    experience: Experience, tokens: TokenFigures, mismatch: dict[str, float]
) -> ExperienceFigures:
    mask_BT, rollout = experience.mask, experience.rollout
    length_B = mask_BT.sum(-1).double()
    return ExperienceFigures(
        kl=kl_per_response(tokens, mask_BT),
        entropy=float(tokens.entropy[mask_BT].double().mean()),
        response_length=float(length_B.mean()),
        eos_fraction=sum(rollout.finished) / len(rollout.finished),
        explained_variance=_explained_variance(experience),
        mismatch=mismatch,
    )


def _explained_variance(experience: Experience) -> float:
    """1 − Var(R − V)/Var(R) over response tokens; 0 where returns do not vary."""
    returns_N = experience.returns[experience.mask].double()
    values_N = experience.values[experience.mask].double()
    spread = float(returns_N.var(correction=0))
    return 1 - float((returns_N - values_N).var(correction=0)) / spread if spread > 0 else 0.0
