"""Losses of every stage: SFT, reward model, PPO, DPO and its relatives.

Aggregation. A scalar named loss or statistic is Σ over True tokens / `global_token_count`, so that
the values of all micro-batches and ranks *add up* to the token mean over the global batch, however
it was split. Where gradients are averaged over ranks (DDP, DeepSpeed), pass
`global_token_count / world_size` and average the statistics likewise. None means: this call's
tokens are all there are. A count for each token, from `token_divisors`, gives tokens other weights.
Preference losses come un-averaged, one a pair.

Log-probs in nats; half precision is raised to fp32. Token-wise functions take any shape, packed
(N,) included.

Shapes: B batch, T time (columns aligned with log-probs), P pairs, K ranked answers of one query.
Masks: `response_mask` / `mask` is True where a token counts; other positions may hold anything.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_trainer.logprobs import upcast
from rlhf_trainer.rewards import LOG_RATIO_CLAMP, KLEstimator, kl_estimate

TokenCount = Tensor | float
SumOverRanks = Callable[[Tensor], Tensor]


def masked_token_mean(
    loss: Tensor, mask: Tensor, global_token_count: TokenCount | None = None
) -> Tensor:
    """Σ_{mask} loss / global_token_count: a scalar; see the module's note on aggregation.

    The count is one number, or one for each token. A batch without True tokens gives 0, still
    attached to the graph.
    """
    mask = mask.bool()
    count = torch.as_tensor(
        mask.sum() if global_token_count is None else global_token_count, device=loss.device
    )
    if count.dim():
        return (upcast(loss) / count).where(mask, 0.0).sum()
    total = upcast(loss).where(mask, 0.0).sum()
    return total / count.to(total.dtype).where(count > 0, 1.0)


LossAggregation = Literal["token", "sequence", "constant"]


def token_divisors(
    how: LossAggregation, lengths: Sequence[int], *, tokens: int, responses: int, longest: int
) -> TokenCount:
    """What the loss of each token is divided by, for some responses of a global batch: one number,
    or (N,), as `masked_token_mean` takes it.

    token      Σ_i |y_i| = `tokens`: each token weighs the same (Yu et al. 2025, DAPO, eq. 8)
    sequence   R·|y_i|: each response does, R = `responses` (Shao et al. 2024, eq. 3)
    constant   R·L: tokens of all batches do, L = `longest` (Liu et al. 2025, Dr. GRPO)
    """
    match how:
        case "token":
            return tokens
        case "sequence":
            length_R = torch.tensor(lengths, dtype=torch.long)
            return length_R.repeat_interleave(length_R) * float(responses)
        case "constant":
            return responses * longest


# --- supervised -----------------------------------------------------------------------------------


def sft_loss(
    logprobs_BT: Tensor, label_mask_BT: Tensor, global_token_count: TokenCount | None = None
) -> Tensor:
    """Cross entropy −log π(y_t|y_<t), token mean over the labels that count: a scalar, nats/token.

    Also the PTX term of PPO.
    """
    return masked_token_mean(-logprobs_BT, label_mask_BT, global_token_count)


# --- reward model ---------------------------------------------------------------------------------


def reward_pair_loss(
    chosen_scores_P: Tensor, rejected_scores_P: Tensor, margin: Tensor | float = 0.0
) -> Tensor:
    """−log σ(s_chosen − s_rejected − margin), un-averaged: (P,).

    Source: Bradley-Terry in Stiennon et al. 2020, sec. 3.4; margin: Touvron et al. 2023 (Llama 2),
    eq. 2. Through logsigmoid, finite at any margin.
    """
    return -F.logsigmoid(upcast(chosen_scores_P) - upcast(rejected_scores_P) - margin)


def ranked_loss(scores_K: Tensor, ranks_K: Tensor, answer_mask_K: Tensor | None = None) -> Tensor:
    """Mean of −log σ(s_i − s_j) over all pairs of one query's answers with rank_i < rank_j.

    1/C(K,2)·Σ without ties; a tied pair is skipped and not counted; rank 1 is best.
    Shapes (…, K) → (…); `answer_mask_K` is True where an answer is there. All tied: 0.
    Source: Ouyang et al. 2022 (InstructGPT), sec. 3.5, eq. 1.
    """
    scores_K = upcast(scores_K)
    if answer_mask_K is not None:
        scores_K = scores_K.where(answer_mask_K.bool(), 0.0)
    loss_KK = -F.logsigmoid(scores_K.unsqueeze(-1) - scores_K.unsqueeze(-2))
    return mean_of_comparisons(loss_KK, ranks_K, answer_mask_K)


def mean_of_comparisons(
    values_KK: Tensor, ranks_K: Tensor, answer_mask_K: Tensor | None = None
) -> Tensor:
    """Mean of the values (i, j) with rank_i < rank_j, as in `ranked_loss`: (…, K, K) → (…)."""
    compared_KK = ranks_K.unsqueeze(-1) < ranks_K.unsqueeze(-2)
    if answer_mask_K is not None:
        present = answer_mask_K.bool()
        compared_KK = compared_KK & present.unsqueeze(-1) & present.unsqueeze(-2)
    return values_KK.where(compared_KK, 0.0).sum((-2, -1)) / compared_KK.sum((-2, -1)).clamp_min(1)


# --- PPO ------------------------------------------------------------------------------------------


class PolicyLoss(NamedTuple):
    """Scalars that add up over micro-batches; only `loss` carries a gradient.

    `clip_fraction`: tokens where the clipped objective is the one in force; `approx_kl`: k3 of
    KL(π_old‖π).
    """

    loss: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    dual_clip: float | None = None,
    *,
    clip_high: float | None = None,
    importance_weights: Tensor | None = None,
    global_token_count: TokenCount | None = None,
    divisors: TokenCount | None = None,
    lengths: Sequence[int] | None = None,
) -> PolicyLoss:
    """−min(ρA, clip(ρ, 1−ε, 1+ε)A), token mean; ρ = exp(clamp(log π − log π_old, ±20)).

    Source: Schulman et al. 2017 (PPO), eq. 7. `clip_high` takes the place of ε above 1 (Yu et al.
    2025, DAPO, sec. 3.1). `dual_clip` c > 1 bounds the loss at −cA where A < 0
    (Ye et al. 2020, sec. "Dual-clip PPO"). `importance_weights`, from
    `truncated_importance_weights`, multiply each token's loss. With `divisors`, from
    `token_divisors`, the loss is no token mean; statistics stay one. With `lengths` of responses,
    which lie end to end and whose tokens all count, ρ is theirs (`sequence_log_ratio`).
    """
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip is {dual_clip}: it must be greater than 1, or None for off")
    mask = mask.bool()
    advantages = upcast(advantages.detach())
    # This `where` stops gradients off the mask: whatever stands there, NaN too, is harmless.
    log_ratio = (upcast(logprobs) - upcast(old_logprobs).detach()).where(mask, 0.0)
    of_tokens = log_ratio.detach().clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP)
    if lengths is not None:
        log_ratio = sequence_log_ratio(log_ratio, lengths)
    ratio = log_ratio.clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP).exp()
    unclipped = -ratio * advantages
    above = clip if clip_high is None else clip_high
    clipped = -ratio.clamp(1 - clip, 1 + above) * advantages
    loss = torch.maximum(unclipped, clipped)
    if dual_clip is not None:
        ceiling = -dual_clip * advantages
        loss = ceiling.where((advantages < 0) & (loss > ceiling), loss)
    if importance_weights is not None:
        loss = loss * upcast(importance_weights.detach())
    with torch.no_grad():
        stats = (clipped > unclipped, torch.expm1(of_tokens) - of_tokens)
        means = [masked_token_mean(stat, mask, global_token_count) for stat in stats]
    count = global_token_count if divisors is None else divisors
    return PolicyLoss(masked_token_mean(loss, mask, count), *means)


def sequence_log_ratio(log_ratio_N: Tensor, lengths: Sequence[int]) -> Tensor:
    """log s_t = sg[1/|y|·Σ_t log ρ_t] + log ρ_t − sg[log ρ_t], at each token of its response: (N,).

    The response's ratio, the geometric mean of its tokens' ratios, with the gradient of the token
    at hand: where advantages of a response are equal, GSPO itself. Source: Zheng et al. 2025
    (GSPO), eq. 7 and 14. Responses of these lengths lie end to end. By slices: sums have an order.
    """
    parts = torch.split(log_ratio_N.detach(), list(lengths))
    means = [part.mean().expand_as(part) for part in parts]
    return torch.cat(means or [log_ratio_N.detach()]) + log_ratio_N - log_ratio_N.detach()


class ImportanceWeights(NamedTuple):
    """Weights of each token (0 off the mask), and the mismatch as token means.

    `capped_fraction`: tokens at the cap; `mismatch_kl`: k3 of KL(π_rollout‖π_trainer), nats;
    `mismatch_abs`: mean |Δ log-prob|; `weight_mean`: about 1 if the two engines agree.
    """

    weights: Tensor
    capped_fraction: Tensor
    mismatch_kl: Tensor
    mismatch_abs: Tensor
    weight_mean: Tensor


@torch.no_grad()
def truncated_importance_weights(
    trainer_logprobs: Tensor,
    rollout_logprobs: Tensor,
    mask: Tensor,
    cap: float,
) -> ImportanceWeights:
    """w = min(π_trainer/π_rollout, cap) of each token, before the first update of a batch.

    Corrects for a rollout engine whose probabilities differ from the trainer's (verl#3694). Source:
    Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training".
    """
    mask = mask.bool()
    log_ratio = (upcast(trainer_logprobs) - upcast(rollout_logprobs)).where(mask, 0.0)
    log_ratio = log_ratio.clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP)
    weights = log_ratio.exp().clamp_max(cap).where(mask, 0.0)
    kl = torch.expm1(log_ratio) - log_ratio
    stats = (log_ratio > math.log(cap), kl, log_ratio.abs(), weights)
    means = [masked_token_mean(stat, mask) for stat in stats]
    return ImportanceWeights(weights, *means)


def ppo_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    *,
    global_token_count: TokenCount | None = None,
) -> Tensor:
    """½·max((V−R)², (V_clip−R)²), token mean; V_clip = V_old + clamp(V − V_old, ±clip): a scalar.

    Source: the reference code of Schulman et al. 2017 (openai/baselines, ppo2).
    """
    mask = mask.bool()
    values, returns = upcast(values).where(mask, 0.0), upcast(returns).detach()
    old_values = upcast(old_values).detach()
    near_old = old_values + (values - old_values).clamp(-clip, clip)
    loss = 0.5 * torch.maximum((values - returns).square(), (near_old - returns).square())
    return masked_token_mean(loss, mask, global_token_count)


def kl_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    estimator: KLEstimator = "k3",
    global_token_count: TokenCount | None = None,
) -> Tensor:
    """Token mean of the KL estimate as a term of the loss (GRPO): a scalar, before its coefficient.

    k3 as in Shao et al. 2024 (DeepSeekMath), eq. 4: its gradient is that of the KL where x is small
    alone. k2's is that of the KL, x·∇log π, on policy. k1's own would be ∇log π, which is 0 on
    average: it gets k1·∇log π, as in the reward (verl's k1+). Source: Tang and Munos 2025, "On a
    few pitfalls in KL divergence gradient estimation for RL".
    """
    mask = mask.bool()
    masked_logprobs = upcast(logprobs).where(mask, 0.0)
    kl = kl_estimate(masked_logprobs, ref_logprobs.detach(), estimator)
    if estimator == "k1":
        kl = kl.detach() * (1 + masked_logprobs - masked_logprobs.detach())
    return masked_token_mean(kl, mask, global_token_count)


def entropy_loss(
    entropy: Tensor, mask: Tensor, global_token_count: TokenCount | None = None
) -> Tensor:
    """−(token mean of the entropy): a scalar, nats; it rewards exploration once it is weighted."""
    return -masked_token_mean(entropy, mask, global_token_count)


# --- preferences: DPO and relatives ---------------------------------------------------------------


class PreferenceLoss(NamedTuple):
    """One a pair, (P,) each, un-averaged; the implicit rewards carry no gradient."""

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def dpo_loss(
    policy_chosen_P: Tensor,
    policy_rejected_P: Tensor,
    ref_chosen_P: Tensor,
    ref_rejected_P: Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> PreferenceLoss:
    """−(1−ε)·log σ(βh) − ε·log σ(−βh), h = Δ_policy − Δ_ref, Δ = log π(chosen) − log π(rejected).

    Log-probs are summed over the response. Source: Rafailov et al. 2023, eq. 7;
    ε > 0 is cDPO (Mitchell 2023): the label is wrong with probability ε.
    """
    chosen_P = upcast(policy_chosen_P) - upcast(ref_chosen_P)
    rejected_P = upcast(policy_rejected_P) - upcast(ref_rejected_P)
    logits_P = beta * (chosen_P - rejected_P)
    loss_P = -(1 - label_smoothing) * F.logsigmoid(logits_P)
    if label_smoothing:
        loss_P = loss_P - label_smoothing * F.logsigmoid(-logits_P)
    return PreferenceLoss(loss_P, beta * chosen_P.detach(), beta * rejected_P.detach())


def ipo_loss(
    policy_chosen_P: Tensor,
    policy_rejected_P: Tensor,
    ref_chosen_P: Tensor,
    ref_rejected_P: Tensor,
    beta: float = 0.1,
) -> PreferenceLoss:
    """(h − 1/(2β))², h = Δ_policy − Δ_ref, with log-probs *summed* over the response.

    Source: Azar et al. 2023, eq. 17, where β is τ. TRL takes means per token instead: β then has
    another scale.
    """
    chosen_P = upcast(policy_chosen_P) - upcast(ref_chosen_P)
    rejected_P = upcast(policy_rejected_P) - upcast(ref_rejected_P)
    loss_P = (chosen_P - rejected_P - 1 / (2 * beta)).square()
    return PreferenceLoss(loss_P, beta * chosen_P.detach(), beta * rejected_P.detach())


def simpo_loss(
    chosen_mean_P: Tensor, rejected_mean_P: Tensor, beta: float = 2.0, gamma: float = 1.0
) -> PreferenceLoss:
    """−log σ(β·(l_chosen − l_rejected) − γ), l = log π(y|x)/|y|; no reference.

    Source: Meng et al. 2024, eq. 6. γ is the paper's target margin, not its ratio γ/β.
    """
    chosen_P, rejected_P = beta * upcast(chosen_mean_P), beta * upcast(rejected_mean_P)
    loss_P = -F.logsigmoid(chosen_P - rejected_P - gamma)
    return PreferenceLoss(loss_P, chosen_P.detach(), rejected_P.detach())


def orpo_loss(chosen_mean_P: Tensor, rejected_mean_P: Tensor, lam: float = 0.1) -> PreferenceLoss:
    """−l_chosen + λ·(−log σ(log odds(chosen) − log odds(rejected))), odds = p/(1−p), p = e^l.

    l = log π(y|x)/|y|; no reference. Source: Hong et al. 2024, eq. 4, 6, 7.
    """
    chosen_P, rejected_P = upcast(chosen_mean_P), upcast(rejected_mean_P)
    odds_ratio_P = -F.logsigmoid(_log_odds(chosen_P) - _log_odds(rejected_P))
    loss_P = -chosen_P + lam * odds_ratio_P
    return PreferenceLoss(loss_P, lam * chosen_P.detach(), lam * rejected_P.detach())


class KtoLoss(NamedTuple):
    """One an example, (B,) each; `rewards` = β·(log π − log π_ref) carries no gradient."""

    loss: Tensor
    rewards: Tensor


def kto_loss(
    policy_logprobs_B: Tensor,
    ref_logprobs_B: Tensor,
    is_desirable_B: Tensor,
    kl_baseline: Tensor | float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> KtoLoss:
    """λ_D·(1 − σ(β(r − z₀))) for a desirable answer, λ_U·(1 − σ(β(z₀ − r))) for another: (B,).

    r = log π(y|x) − log π_ref(y|x), summed; z₀ from `kto_kl_baseline`. Source: Ethayarajh et al.
    2024, eq. 8.
    """
    desirable_B = is_desirable_B.bool()
    log_ratio_B = upcast(policy_logprobs_B) - upcast(ref_logprobs_B)
    surplus_B = beta * (log_ratio_B - kl_baseline)
    good_B = desirable_weight * torch.sigmoid(-surplus_B)  # 1 − σ(x) = σ(−x), without cancellation
    bad_B = undesirable_weight * torch.sigmoid(surplus_B)
    return KtoLoss(good_B.where(desirable_B, bad_B), beta * log_ratio_B.detach())


@torch.no_grad()
def kto_kl_baseline(
    policy_mismatched_B: Tensor, ref_mismatched_B: Tensor, reduce: SumOverRanks
) -> Tensor:
    """z₀ = max(0, mean of log π(y′|x) − log π_ref(y′|x)) over the global batch: a scalar, nats.

    y′ is the answer to *another* prompt. Every rank makes the call: `reduce` sums a small tensor
    over ranks. Source: Ethayarajh et al. 2024, sec. 4.
    """
    log_ratio_B = (upcast(policy_mismatched_B) - upcast(ref_mismatched_B)).double()
    count = torch.full_like(log_ratio_B.sum(), len(log_ratio_B))
    total, count = reduce(torch.stack([log_ratio_B.sum(), count]))
    mean: Tensor = total / count.clamp_min(1)
    return mean.clamp_min(0).to(upcast(policy_mismatched_B).dtype)


def _log_odds(mean_logprob: Tensor) -> Tensor:
    """l − log(1 − e^l). Kept off l = 0, where the odds are infinite; below −ln 2 by log1p, above by
    expm1 (Mächler 2012), each where it is exact."""
    l = mean_logprob.clamp_max(-1e-6)  # noqa: E741
    near_zero = l > -math.log(2)
    log1mexp = torch.where(near_zero, (-torch.expm1(l)).log(), torch.log1p(-l.exp()))
    return l - log1mexp
