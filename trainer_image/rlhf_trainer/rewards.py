"""From scores to per-token rewards: KL penalty, score shaping, β control.

x = log π(token) − log π_ref(token), under tokens sampled from π. All log-probs in nats.

Shapes: B batch, T time (columns aligned with log-probs: T−1 of the token row).
Masks: `response_mask_BT` is True where a token of the response counts, its EOS included.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from rlhf_trainer.logprobs import upcast

KLEstimator = Literal["k1", "k2", "k3"]

KL_CLAMP = 10.0
LOG_RATIO_CLAMP = 20.0


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Per-token estimate of KL(π‖π_ref), nats, any shape, clamped to ±10.

    k1 = x        k2 = x²/2        k3 = e^(−x) − 1 + x
    Unbiased: k1 and k3; never negative: k2 and k3. Source: Schulman 2020, "Approximating KL".
    It is the estimate that is clamped; inside k3, x is clamped to ±20 first, so that a huge
    difference yields neither inf nor a NaN gradient.
    """
    x = upcast(logprobs) - upcast(ref_logprobs)
    match estimator:
        case "k1":
            kl = x
        case "k2":
            kl = x.square() / 2
        case "k3":
            x = x.clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP)
            kl = torch.expm1(-x) + x
        case _:
            raise ValueError(f"unknown KL estimator {estimator!r}: expected k1, k2 or k3")
    return kl.clamp(-KL_CLAMP, KL_CLAMP)


def last_response_token_mask(response_mask_BT: Tensor) -> Tensor:
    """True at the last True of each row, and nowhere in a row without one: (B, T) bool."""
    mask_BT = response_mask_BT.bool()
    true_from_here_BT = mask_BT.long().flip(-1).cumsum(-1).flip(-1)
    return mask_BT & (true_from_here_BT == 1)


def kl_penalty_rewards(
    scores_B: Tensor,
    logprobs_BT: Tensor,
    ref_logprobs_BT: Tensor,
    response_mask_BT: Tensor,
    kl_coef: float,
    estimator: KLEstimator = "k1",
) -> Tensor:
    """r_t = −β·KL_t + [t is the last response token]·score, 0 off the mask: (B, T).

    Source: Ziegler et al. 2019, sec. 2, eq. 2; Ouyang et al. 2022 (InstructGPT), sec. 3.5.
    The score lands on the last response token itself (its EOS, or the token that truncation left
    last). No gradient flows through the result.
    """
    mask_BT = response_mask_BT.bool()
    kl_BT = kl_estimate(logprobs_BT.detach(), ref_logprobs_BT.detach(), estimator)
    kl_BT = kl_BT.where(mask_BT, 0.0)
    scores_B1 = upcast(scores_B.detach()).unsqueeze(-1)
    return scores_B1.where(last_response_token_mask(mask_BT), 0.0) - kl_coef * kl_BT


def normalise_scores(scores_B: Tensor, mean: float, std: float) -> Tensor:
    """(s − mean)/std, with the moments that travel with the reward model's checkpoint: (B,).

    A std below 1e-8 (a reward model that says the same of everything) counts as 1e-8.
    """
    return (upcast(scores_B) - mean) / max(std, 1e-8)


def missing_eos_penalty(scores_B: Tensor, has_eos_B: Tensor, penalty: float) -> Tensor:
    """score − penalty where the response never ended by itself; `has_eos_B` True where it did."""
    return upcast(scores_B) - penalty * (~has_eos_B.bool()).to(upcast(scores_B).dtype)


def overlong_penalty(lengths_B: Tensor, max_length: int, buffer_length: int) -> Tensor:
    """Soft overlong punishment, to be added to the score: (B,) fp32 in [−1, 0].

    0 up to L_max − L_buffer tokens, then linear down to −1 at L_max, −1 beyond.
    Source: Yu et al. 2025 (DAPO), eq. 13.
    """
    if not 0 < buffer_length <= max_length:
        raise ValueError(f"buffer_length {buffer_length} must be in 1..max_length {max_length}")
    over_B = (lengths_B.float() - (max_length - buffer_length)) / buffer_length
    return -over_B.clamp(0.0, 1.0)


def weighted_sum(scores: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Σ_i w_i·score_i over named reward sources: (B,). The two must name the same sources."""
    if scores.keys() != weights.keys() or not scores:
        raise ValueError(f"rewards {sorted(scores)} and weights {sorted(weights)} must match")
    return torch.stack([weights[name] * upcast(score) for name, score in scores.items()]).sum(0)


class FixedKL:
    """A KL coefficient β that stays as configured; same interface as `AdaptiveKL`."""

    def __init__(self, coef: float) -> None:
        self.coef = coef

    def update(self, kl: float, sequences: int) -> float:
        """β, whatever was measured."""
        return self.coef

    def state_dict(self) -> dict[str, float]:
        """All that a resume needs."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore β."""
        self.coef = float(state["coef"])


class AdaptiveKL(FixedKL):
    """β ← β·(1 + clip(KL/target − 1, ±0.2)·n/horizon), after each rollout.

    KL is the global batch's mean over sequences of the KL summed over the response, in nats; n is
    the number of sequences in the global batch. Source: Ziegler et al. 2019, sec. 2.2.
    n/horizon counts as at most 1: β stays positive.
    """

    def __init__(self, coef: float, target: float = 6.0, horizon: int = 10_000) -> None:
        super().__init__(coef)
        self.target, self.horizon = target, horizon

    def update(self, kl: float, sequences: int) -> float:
        """Move β towards the target and return it. ValueError for a KL that is not finite."""
        if not math.isfinite(kl):
            raise ValueError(f"KL is {kl}: the policy has diverged, β cannot follow it")
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.coef *= 1.0 + error * min(sequences / self.horizon, 1.0)
        return self.coef
