"""Advantage estimators: GAE for PPO; GRPO, RLOO and REINFORCE++ without a critic; whitening.

None of them carries a gradient. They see the whole global batch, which every rank holds
(`ppo.experience`).

Shapes: B batch, T time (columns aligned with log-probs), G groups (prompts), K answers a prompt.
Masks: `response_mask_BT` is True where a token of the response counts, its EOS included.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_trainer.logprobs import upcast


class Advantages(NamedTuple):
    """Per-token advantages and returns, (B, T) each, both 0 where the mask is False."""

    advantages: Tensor
    returns: Tensor


@torch.no_grad()
def gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    response_mask_BT: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> Advantages:
    """Generalised advantage estimation. Source: Schulman et al. 2016, eq. 11 and 16.

    δ_t = r_t + γ·V_{t+1} − V_t        A_t = δ_t + γλ·A_{t+1}        R_t = A_t + V_t

    t+1 is the next *response* token: pads, and tool output between two turns, are stepped over and
    their rewards and values are never read. After the last response token V and A are 0. Returns
    are taken before any whitening. `values_BT[:, t]` is the value of the state that token t was
    sampled in (the critic's output at position t−1 of the token row).
    """
    mask_BT = response_mask_BT.bool()
    order_BT = (~mask_BT).long().argsort(dim=-1, stable=True)  # response tokens first, in order
    rewards_BT = upcast(rewards_BT).where(mask_BT, 0.0).gather(-1, order_BT)
    values_BT = upcast(values_BT).where(mask_BT, 0.0).gather(-1, order_BT)
    next_values_BT = torch.cat([values_BT[:, 1:], torch.zeros_like(values_BT[:, :1])], dim=-1)
    deltas_BT = rewards_BT + gamma * next_values_BT - values_BT
    advantages_BT = _discounted_sums(deltas_BT, gamma * lam)
    packed = (advantages_BT, advantages_BT + values_BT)
    return Advantages(*(torch.empty_like(x).scatter_(-1, order_BT, x) for x in packed))


@torch.no_grad()
def whiten(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """(x − μ)/√(σ² + eps), 0 where the mask is False; same shape as `x`.

    μ and σ² are those of all True tokens. σ² is the population (biased, /n) variance, in two
    float64 passes.
    """
    mask, values = mask.bool(), upcast(x)
    wide, count = values.double(), mask.sum().double().clamp_min(1)
    mean = wide.where(mask, 0.0).sum() / count
    var = (wide - mean).where(mask, 0.0).square().sum() / count
    whitened: Tensor = (wide - mean) / (var + eps).sqrt()
    return whitened.where(mask, 0.0).to(values.dtype)


@torch.no_grad()
def grpo_advantages(scores_GK: Tensor, divide_by_std: bool = True, eps: float = 1e-6) -> Tensor:
    """A = (s − mean of its group)/(std of its group + eps), or without the division: (G, K).

    Source: Shao et al. 2024 (DeepSeekMath), sec. 4.1.2; without std: Liu et al. 2025 (Dr. GRPO).
    std is the sample one (/(K−1)), as in TRL and verl. In float64, so that a group whose scores are
    all equal gets 0 and not its rounding error over eps.
    """
    _require_two_answers(scores_GK)
    scores: Tensor = scores_GK.double()
    advantages = scores - scores.mean(-1, keepdim=True)
    if divide_by_std:
        advantages /= scores.std(-1, keepdim=True, correction=1) + eps
    return advantages.to(upcast(scores_GK).dtype)


@torch.no_grad()
def rloo_advantages(scores_GK: Tensor) -> Tensor:
    """A_i = s_i − mean of the other K−1 answers' scores = K/(K−1)·(s_i − mean): (G, K).

    Source: Kool et al. 2019; Ahmadian et al. 2024 (Back to Basics), sec. 3.
    """
    _require_two_answers(scores_GK)
    scores, answers = scores_GK.double(), scores_GK.shape[-1]
    centred = scores - scores.mean(-1, keepdim=True)
    return (centred * (answers / (answers - 1))).to(upcast(scores_GK).dtype)


@torch.no_grad()
def reinforce_plus_plus_advantages(
    rewards_BT: Tensor, response_mask_BT: Tensor, gamma: float = 1.0
) -> Advantages:
    """R_t = Σ_{i≥t} γ^(i−t)·r_i over response tokens; A = R whitened over the global batch.

    `rewards_BT` already carries the per-token KL penalty (`kl_penalty_rewards`). Source: Hu 2025
    (REINFORCE++), sec. 3. It is GAE with V = 0 and λ = 1, whitened.
    """
    zeros_BT = torch.zeros_like(rewards_BT)
    returns_BT = gae(rewards_BT, zeros_BT, response_mask_BT, gamma, lam=1.0).returns
    return Advantages(whiten(returns_BT, response_mask_BT), returns_BT)


def spread_over_tokens(advantages_B: Tensor, response_mask_BT: Tensor) -> Tensor:
    """One advantage a sequence, given to each of its response tokens; 0 elsewhere: (B, T)."""
    return advantages_B.unsqueeze(-1).where(response_mask_BT.bool(), 0.0)


def _discounted_sums(x_BT: Tensor, discount: float) -> Tensor:
    """y_t = x_t + discount·y_{t+1}. One fused kernel a step, over rows that lie contiguous."""
    x_TB = x_BT.t().contiguous()
    running_B = torch.zeros_like(x_BT[:, 0])
    for t in reversed(range(len(x_TB))):
        running_B = torch.add(x_TB[t], running_B, alpha=discount, out=x_TB[t])
    return x_TB.t()


def _require_two_answers(scores_GK: Tensor) -> None:
    if scores_GK.shape[-1] < 2:
        raise ValueError("a group needs at least 2 answers: one alone has no baseline")
