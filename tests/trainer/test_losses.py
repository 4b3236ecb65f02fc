"""Losses against numbers worked by hand and float64 Python loops."""

import math
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rlhf_trainer import losses as ls
from rlhf_trainer.logprobs import packed_logprobs
from torch import Tensor

F64 = torch.float64


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def softplus(x: float) -> float:
    """−log σ(−x) = log(1 + e^x), in plain float64."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def nll_of_sigmoid(x: float) -> float:
    return softplus(-x)


# --- aggregation ----------------------------------------------------------------------------------


def test_token_mean_divides_by_the_tokens_that_count_and_reads_no_others() -> None:
    loss = torch.tensor([[1.0, 2.0, math.nan], [6.0, math.inf, 7.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert ls.masked_token_mean(loss, mask).item() == pytest.approx(3.0, abs=1e-6)
    assert ls.masked_token_mean(loss, mask, 9).item() == pytest.approx(1.0, abs=1e-6)
    assert ls.masked_token_mean(loss, mask, torch.tensor(18)).item() == pytest.approx(0.5, abs=1e-6)


def test_token_mean_of_an_empty_mask_is_zero_and_still_in_the_graph() -> None:
    loss = torch.ones(1, 2, requires_grad=True)
    mean = ls.masked_token_mean(loss, torch.zeros(1, 2))
    mean.backward()
    assert mean.item() == 0.0
    assert loss.grad is not None
    assert loss.grad.eq(0).all()


def test_averaging_over_ranks_with_the_count_divided_by_the_world_size_is_the_global_mean() -> None:
    ranks = [f64(1.0, 2.0, 3.0), f64(10.0)]
    shares = [ls.masked_token_mean(x, torch.ones_like(x), 4 / 2) for x in ranks]
    assert sum(float(x) for x in shares) / 2 == pytest.approx(16 / 4, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(owners=st.lists(st.integers(0, 3), min_size=6, max_size=6), seed=st.integers(0, 1000))
def test_every_loss_and_gradient_is_the_same_however_the_batch_is_split(
    owners: list[int], seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    old, advantages, returns, ref = torch.randn(4, 6, 5, generator=g, dtype=F64).unbind()
    mask = torch.rand(6, 5, generator=g) < 0.6
    x = (old + 0.3 * torch.randn(6, 5, generator=g, dtype=F64)).requires_grad_()
    count = mask.sum()

    def total(rows: list[int]) -> Tensor:
        policy = ls.ppo_policy_loss(
            x[rows],
            old[rows],
            advantages[rows],
            mask[rows],
            dual_clip=3.0,
            global_token_count=count,
        )
        value = ls.ppo_value_loss(
            x[rows], old[rows], returns[rows], mask[rows], global_token_count=count
        )
        return torch.stack(
            [
                *policy,
                value,
                ls.sft_loss(x[rows], mask[rows], count),
                ls.kl_loss(x[rows], ref[rows], mask[rows], "k3", count),
                ls.entropy_loss(x[rows], mask[rows], count),
            ]
        )

    whole = total(list(range(6)))
    parts = [[row for row in range(6) if owners[row] == rank] for rank in range(4)]
    split = torch.stack([total(rows) for rows in parts]).sum(0)
    torch.testing.assert_close(split, whole, rtol=0, atol=5e-8)  # fractions are fp32
    weights = torch.arange(1.0, len(whole) + 1, dtype=F64)
    grads = [torch.autograd.grad((weights * y).sum(), x)[0] for y in (split, whole)]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-12)


PER_TOKEN, LENGTHS = f64(1.0, 2.0, 6.0, 4.0, 5.0), [2, 3]


@pytest.mark.parametrize(
    ("how", "want"),
    [
        ("token", (1 + 2 + 6 + 4 + 5) / 5),
        ("sequence", ((1 + 2) / 2 + (6 + 4 + 5) / 3) / 2),
        ("constant", (1 + 2 + 6 + 4 + 5) / (2 * 8)),
    ],
)
def test_tokens_weigh_by_token_by_response_or_by_a_constant_however_responses_are_split(
    how: Literal["token", "sequence", "constant"], want: float
) -> None:
    def share(rows: list[int]) -> float:
        tokens = torch.cat([PER_TOKEN.split(LENGTHS)[i] for i in rows])
        lengths = [LENGTHS[i] for i in rows]
        divisors = ls.token_divisors(how, lengths, tokens=5, responses=2, longest=8)
        return ls.masked_token_mean(tokens, torch.ones(len(tokens)), divisors).item()

    assert share([0, 1]) == pytest.approx(want, abs=1e-7)
    assert share([0]) + share([1]) == pytest.approx(want, abs=1e-7)
    assert share([1, 0]) == pytest.approx(want, abs=1e-7)


def test_a_rank_without_a_response_adds_nothing_in_any_aggregation() -> None:
    nothing = torch.zeros(0, requires_grad=True)
    divisors = ls.token_divisors("sequence", [], tokens=5, responses=2, longest=8)
    loss = ls.masked_token_mean(nothing, torch.zeros(0), divisors)
    loss.backward()
    assert loss.item() == 0.0


# --- supervised and reward model ------------------------------------------------------------------


def test_sft_loss_is_the_mean_cross_entropy_of_the_labels_that_count() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0], [5.0, 5.0, 5.0]], dtype=F64)
    labels, labels_count = torch.tensor([2, 1, 0]), torch.tensor([1, 1, 0]).bool()
    row_0 = math.log(1 + math.e + math.e**2) - 2.0
    row_1 = math.log(math.e + 2) - 0.0
    loss = ls.sft_loss(packed_logprobs(logits, labels), labels_count)
    assert loss.item() == pytest.approx((row_0 + row_1) / 2, abs=1e-12)


def test_pair_loss_by_hand() -> None:
    got = ls.reward_pair_loss(f64(1.0, 0.0, 2.0), f64(0.0, 0.0, 3.0), f64(0.0, 0.0, 0.5))
    want = [nll_of_sigmoid(1.0), math.log(2), nll_of_sigmoid(-1.5)]
    assert got.tolist() == pytest.approx(want, abs=1e-12)


def test_pair_loss_at_margin_200_is_200_with_a_finite_gradient() -> None:
    chosen = torch.tensor([0.0, 400.0], requires_grad=True)
    loss = ls.reward_pair_loss(chosen, torch.zeros(2), margin=200.0)
    loss.sum().backward()
    assert loss.tolist() == [200.0, 0.0]
    assert chosen.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-1.0, 0.0], abs=1e-6)


def test_pair_loss_of_bf16_scores_is_taken_in_fp32() -> None:
    chosen, rejected = torch.tensor([100.5]).bfloat16(), torch.tensor([100.0]).bfloat16()
    got = ls.reward_pair_loss(chosen, rejected, margin=0.001)
    assert got.item() == pytest.approx(nll_of_sigmoid(0.499), abs=1e-6)


def ranked_by_loops(scores: Sequence[float], ranks: Sequence[int]) -> float:
    pairs = [
        nll_of_sigmoid(scores[i] - scores[j])
        for i in range(len(scores))
        for j in range(len(scores))
        if ranks[i] < ranks[j]
    ]
    return sum(pairs) / len(pairs) if pairs else 0.0


def test_ranked_loss_averages_all_comparisons_of_a_query() -> None:
    scores, ranks = [0.3, -1.0, 2.0, 0.1], [2, 4, 1, 3]
    got = ls.ranked_loss(f64(*scores), torch.tensor(ranks))
    assert got.item() == pytest.approx(ranked_by_loops(scores, ranks), abs=1e-12)
    by_hand = (2.0 - 0.3, 2.0 - 0.1, 2.0 + 1.0, 0.3 - 0.1, 0.3 + 1.0, 0.1 + 1.0)  # 4·3/2 = 6
    assert got.item() == pytest.approx(sum(map(nll_of_sigmoid, by_hand)) / 6, abs=1e-12)


def test_ranked_loss_skips_ties_and_absent_answers_without_counting_them() -> None:
    scores = torch.tensor([[0.3, -1.0, 2.0], [0.5, 0.25, math.nan], [1.0, 2.0, 3.0]], dtype=F64)
    ranks = torch.tensor([[1, 1, 2], [1, 2, 3], [1, 1, 1]])
    present = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]])
    got = ls.ranked_loss(scores, ranks, present)
    want = [(nll_of_sigmoid(-1.7) + nll_of_sigmoid(-3.0)) / 2, nll_of_sigmoid(0.25), 0.0]
    assert got.tolist() == pytest.approx(want, abs=1e-12)


def test_ranked_loss_of_two_answers_is_the_pair_loss() -> None:
    pair = ls.reward_pair_loss(f64(0.7), f64(-0.2))
    torch.testing.assert_close(ls.ranked_loss(f64(-0.2, 0.7), torch.tensor([2, 1])), pair[0])


# --- PPO ------------------------------------------------------------------------------------------


def policy_by_loops(
    logprobs: Sequence[float],
    old: Sequence[float],
    advantages: Sequence[float],
    clip: tuple[float, float],
    dual: float | None,
) -> float:
    """The paper's objective to be maximised, token by token; the loss is its negative mean."""
    total = 0.0
    for new, before, a in zip(logprobs, old, advantages, strict=True):
        ratio = math.exp(new - before)
        objective = min(ratio * a, min(max(ratio, 1 - clip[0]), 1 + clip[1]) * a)
        if dual is not None and a < 0:
            objective = max(objective, dual * a)
        total += objective
    return -total / len(logprobs)


NEW, OLD, ADV = [-1.0, -1.0, -2.0, -0.1, -3.0], [-1.5, -0.5, -2.05, -2.1, -1.0], [2, 1, 3, -1, -2]


@pytest.mark.parametrize("high", [None, 0.28])
@pytest.mark.parametrize("dual", [None, 3.0])
def test_policy_loss_is_the_negative_clipped_objective(
    dual: float | None, high: float | None
) -> None:
    mask = torch.ones(5)
    got = ls.ppo_policy_loss(f64(*NEW), f64(*OLD), f64(*ADV), mask, 0.2, dual, clip_high=high)
    want = policy_by_loops(NEW, OLD, ADV, (0.2, high or 0.2), dual)
    assert got.loss.item() == pytest.approx(want, abs=1e-12)


def test_at_step_0_the_ratio_is_1_and_the_loss_is_minus_the_mean_advantage() -> None:
    logprobs = f64(-1.0, -2.0, -3.0).requires_grad_()
    advantages, mask = f64(2.0, -1.0, 99.0), torch.tensor([1, 1, 0])
    got = ls.ppo_policy_loss(logprobs, logprobs.detach(), advantages, mask)
    assert got.loss.item() == pytest.approx(-0.5, abs=1e-12)
    assert [got.clip_fraction.item(), got.approx_kl.item()] == [0.0, 0.0]
    (grad,) = torch.autograd.grad(got.loss, logprobs)  # the policy gradient: −A/n
    assert grad.tolist() == pytest.approx([-1.0, 0.5, 0.0], abs=1e-12)


def test_policy_statistics_by_hand() -> None:
    new, old = f64(math.log(1.5), math.log(0.5), math.log(1.5), 0.0), f64(0.0, 0.0, 0.0, 0.0)
    got = ls.ppo_policy_loss(new, old, f64(1.0, 1.0, -1.0, 1.0), torch.ones(4))
    # only the first is held by the clip: ρ rose with A > 0; the 2nd and 3rd moved the wrong way
    assert got.clip_fraction.item() == pytest.approx(0.25, abs=1e-6)
    kl = (0.5 - math.log(1.5)) * 2 + (-0.5 - math.log(0.5))
    assert got.approx_kl.item() == pytest.approx(kl / 4, abs=1e-12)
    assert got.loss.item() == pytest.approx(-(1.2 + 0.5 - 1.5 + 1.0) / 4, abs=1e-12)


def test_a_higher_upper_clip_lets_good_tokens_grow_further_and_bad_ones_shrink_no_more() -> None:
    new, old = f64(math.log(1.25), math.log(0.75)).requires_grad_(), f64(0.0, 0.0)
    got = ls.ppo_policy_loss(new, old, f64(2.0, -2.0), torch.ones(2), 0.2, clip_high=0.28)
    assert got.loss.item() == pytest.approx(-(1.25 * 2 - 0.8 * 2) / 2, abs=1e-12)
    assert got.clip_fraction.item() == 0.5
    (grad,) = torch.autograd.grad(got.loss, new)
    assert grad.tolist() == pytest.approx([-1.25, 0.0], abs=1e-12)


def test_dual_clip_bounds_the_loss_of_a_bad_token_and_stops_its_gradient() -> None:
    new = f64(math.log(10.0), math.log(2.0)).requires_grad_()
    old, advantages, mask = f64(0.0, 0.0), f64(-1.0, -1.0), torch.ones(2)
    free = ls.ppo_policy_loss(new, old, advantages, mask, dual_clip=None)
    held = ls.ppo_policy_loss(new, old, advantages, mask, dual_clip=3.0)
    assert free.loss.item() == pytest.approx((10 + 2) / 2, abs=1e-12)
    assert held.loss.item() == pytest.approx((3 + 2) / 2, abs=1e-12)
    (grad,) = torch.autograd.grad(held.loss, new)
    assert grad.tolist() == pytest.approx([0.0, 1.0], abs=1e-12)


def test_dual_clip_of_1_or_less_is_refused() -> None:
    one = torch.ones(1)
    with pytest.raises(ValueError, match="dual_clip"):
        ls.ppo_policy_loss(one, one, one, one, dual_clip=1.0)


def test_the_log_ratio_is_clamped_at_20() -> None:
    got = ls.ppo_policy_loss(f64(0.0), f64(-1000.0), f64(-1.0), torch.ones(1))
    assert got.loss.item() == pytest.approx(math.exp(20.0), rel=1e-12)


def test_garbage_off_the_mask_reaches_neither_policy_loss_nor_gradient() -> None:
    logprobs = torch.tensor([-1.0, -math.inf, math.nan, -1.0], requires_grad=True)
    old = torch.tensor([-1.0, -math.inf, 0.0, -1.5])
    advantages = torch.tensor([2.0, math.nan, 1.0, math.nan])
    mask = torch.tensor([True, False, False, False])
    got = ls.ppo_policy_loss(logprobs, old, advantages, mask, importance_weights=advantages)
    got.loss.backward()
    assert got.loss.item() == -4.0
    assert all(x.isfinite() for x in got)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-4.0, 0.0, 0.0, 0.0]


def test_a_sequences_ratio_is_the_geometric_mean_of_its_tokens_ratios() -> None:
    """GSPO's objective, written out for two responses, and its gradient."""
    new, old = (
        f64(-1.0, -1.3, -2.0, -0.1, -3.0).requires_grad_(),
        f64(-1.1, -1.0, -2.05, -1.1, -2.9),
    )
    s = torch.stack([(part).mean().exp() for part in (new - old).split([2, 3])])
    one, two = torch.min(s[0] * 2, s[0].clamp(0.9, 1.2) * 2), torch.min(s[1], s[1].clamp(0.9, 1.2))
    want = -(one + two) / 2
    assert s.tolist() == pytest.approx([math.exp(-0.1), math.exp((0.05 + 1 - 0.1) / 3)], abs=1e-12)
    divisors = ls.token_divisors("sequence", [2, 3], tokens=5, responses=2, longest=8)
    got = ls.ppo_policy_loss(
        new, old, f64(2, 2, 1, 1, 1), torch.ones(5), 0.1, clip_high=0.2,
        lengths=[2, 3], global_token_count=5, divisors=divisors,
    )  # fmt: skip
    assert got.loss.item() == pytest.approx(want.item(), abs=1e-7)
    grads = [torch.autograd.grad(loss, new)[0] for loss in (got.loss, want)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-7)
    assert grads[0].ne(0).tolist() == [True, True, False, False, False]  # the second is clipped
    assert got.clip_fraction.item() == pytest.approx(3 / 5, abs=1e-6)  # of tokens, as ever
    kl = sum(math.exp(x) - 1 - x for x in (0.1, -0.3, 0.05, 1.0, -0.1)) / 5
    assert got.approx_kl.item() == pytest.approx(kl, abs=1e-12)


def test_importance_weights_are_capped_and_the_mismatch_is_reported() -> None:
    trainer, rollout = f64(-1.0, -1.0, -1.0, 5.0), f64(-1.0, -0.5, -3.0, -5.0)
    mask = torch.tensor([1, 1, 1, 0])
    got = ls.truncated_importance_weights(trainer, rollout, mask, cap=2.0)
    assert got.weights.tolist() == pytest.approx([1.0, math.exp(-0.5), 2.0, 0.0], abs=1e-12)
    assert got.capped_fraction.item() == pytest.approx(1 / 3, abs=1e-6)
    kl = (math.exp(-0.5) - 1 + 0.5) + (math.exp(2.0) - 1 - 2.0)
    assert got.mismatch_kl.item() == pytest.approx(kl / 3, abs=1e-12)
    assert got.mismatch_abs.item() == pytest.approx(2.5 / 3, abs=1e-12)
    assert got.weight_mean.item() == pytest.approx((3.0 + math.exp(-0.5)) / 3, abs=1e-12)


def test_importance_weights_scale_the_loss_of_their_token() -> None:
    zero = f64(0.0, 0.0)
    got = ls.ppo_policy_loss(
        zero, zero, f64(1.0, 3.0), torch.ones(2), importance_weights=f64(2.0, 0.5)
    )
    assert got.loss.item() == pytest.approx(-(2.0 + 1.5) / 2, abs=1e-12)


def test_value_loss_is_half_the_larger_of_plain_and_clipped_error() -> None:
    values, old = [1.0, 1.0, 0.1, -1.0], [0.0, 2.0, 0.0, 0.0]
    returns = [2.0, 1.0, 5.0, -3.0]
    want = 0.0
    for v, o, r in zip(values, old, returns, strict=True):
        clipped = o + min(max(v - o, -0.2), 0.2)
        want += 0.5 * max((v - r) ** 2, (clipped - r) ** 2) / 4
    got = ls.ppo_value_loss(f64(*values), f64(*old), f64(*returns), torch.ones(4), 0.2)
    assert got.item() == pytest.approx(want, abs=1e-12)


def test_garbage_off_the_mask_reaches_neither_value_loss_nor_gradient() -> None:
    values = torch.tensor([1.0, math.nan], requires_grad=True)
    bad = torch.tensor([3.0, math.inf])
    got = ls.ppo_value_loss(values, bad, bad, torch.tensor([1, 0]))
    got.backward()
    assert got.item() == 2.0
    assert values.grad is not None
    assert values.grad.tolist() == [-2.0, 0.0]


def test_kl_as_a_loss_by_hand_and_with_its_gradient() -> None:
    logprobs = f64(-1.0, -2.0, -9.0).requires_grad_()
    ref, mask = f64(-1.5, -1.0, math.nan), torch.tensor([1, 1, 0])
    k3 = ls.kl_loss(logprobs, ref, mask)
    want = (math.exp(-0.5) - 1 + 0.5 + math.exp(1.0) - 1 - 1.0) / 2
    assert k3.item() == pytest.approx(want, abs=1e-12)
    (grad,) = torch.autograd.grad(k3, logprobs)
    by_hand = [(1 - math.exp(-0.5)) / 2, (1 - math.exp(1.0)) / 2, 0.0]
    assert grad.tolist() == pytest.approx(by_hand, abs=1e-12)
    k2 = ls.kl_loss(logprobs, ref, mask, "k2")
    assert k2.item() == pytest.approx(0.3125, abs=1e-12)
    (grad,) = torch.autograd.grad(k2, logprobs)  # x/n: that of the true KL, on policy
    assert grad.tolist() == pytest.approx([0.25, -0.5, 0.0], abs=1e-12)


def test_k1_as_a_loss_has_its_own_value_and_the_gradient_that_it_has_in_the_reward() -> None:
    logprobs = f64(-1.0, -2.0, -15.0, -9.0).requires_grad_()
    ref, mask = f64(-1.5, -1.0, -1.0, math.nan), torch.tensor([1, 1, 1, 0])
    k1 = ls.kl_loss(logprobs, ref, mask, "k1")
    assert k1.item() == pytest.approx((0.5 - 1.0 - 10.0) / 3, abs=1e-12)
    (grad,) = torch.autograd.grad(k1, logprobs)  # x·∇log π, clamped as the reward's penalty is
    assert grad.tolist() == pytest.approx([0.5 / 3, -1 / 3, -10 / 3, 0.0], abs=1e-12)


@pytest.mark.parametrize(("estimator", "is_exact"), [("k1", True), ("k2", True), ("k3", False)])
def test_k1_and_k2_as_a_loss_have_the_gradient_of_the_kl_over_the_policys_own_tokens(
    estimator: Literal["k1", "k2", "k3"], is_exact: bool
) -> None:
    logits = f64(0.5, 0.0, -1.0).requires_grad_()
    log_p, log_q = logits.log_softmax(-1), f64(0.2, 0.2, 0.6).log()
    p = log_p.exp()
    (want,) = torch.autograd.grad((p * (log_p - log_q)).sum(), logits, retain_graph=True)
    tokens = [ls.kl_loss(log_p[[i]], log_q[[i]], torch.ones(1), estimator) for i in range(3)]
    expected_loss = (p.detach() * torch.stack(tokens)).sum()
    (got,) = torch.autograd.grad(expected_loss, logits)
    assert (got.tolist() == pytest.approx(want.tolist(), abs=1e-12)) is is_exact


def test_entropy_loss_falls_as_entropy_rises() -> None:
    got = ls.entropy_loss(f64(1.0, 2.0, 9.0), torch.tensor([1, 1, 0]))
    assert got.item() == pytest.approx(-1.5, abs=1e-12)


# --- DPO and relatives ----------------------------------------------------------------------------

CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED = f64(-10.0), f64(-12.0), f64(-11.0), f64(-11.5)
# Δ_policy = 2, Δ_ref = 0.5, h = 1.5; log-ratio of the chosen +1, of the rejected −0.5


def test_dpo_loss_by_hand() -> None:
    got = ls.dpo_loss(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED, beta=0.2)
    assert got.loss.item() == pytest.approx(nll_of_sigmoid(0.3), abs=1e-12)
    assert got.chosen_rewards.item() == pytest.approx(0.2, abs=1e-12)
    assert got.rejected_rewards.item() == pytest.approx(-0.1, abs=1e-12)


def test_dpo_starts_at_log_2_where_policy_and_reference_agree() -> None:
    got = ls.dpo_loss(CHOSEN, REJECTED, CHOSEN, REJECTED)
    assert got.loss.item() == pytest.approx(math.log(2), abs=1e-12)


def test_cdpo_smooths_the_label() -> None:
    got = ls.dpo_loss(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED, 0.2, label_smoothing=0.1)
    want = 0.9 * nll_of_sigmoid(0.3) + 0.1 * nll_of_sigmoid(-0.3)
    assert got.loss.item() == pytest.approx(want, abs=1e-12)


def test_dpo_stays_finite_for_sequences_that_are_thousands_of_nats_apart() -> None:
    chosen = torch.tensor([-5000.0], requires_grad=True)
    got = ls.dpo_loss(chosen, torch.zeros(1), torch.zeros(1), torch.zeros(1), 0.1, 0.1)
    got.loss.sum().backward()
    assert got.loss.item() == pytest.approx(0.9 * 500, rel=1e-6)
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.09, abs=1e-6)


def test_ipo_loss_is_the_squared_distance_to_1_over_2_beta() -> None:
    got = ls.ipo_loss(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED, beta=0.1)
    assert got.loss.item() == pytest.approx((1.5 - 5.0) ** 2, abs=1e-12)
    assert got.chosen_rewards.item() == pytest.approx(0.1, abs=1e-12)
    assert got.rejected_rewards.item() == pytest.approx(-0.05, abs=1e-12)


def test_simpo_loss_by_hand() -> None:
    got = ls.simpo_loss(f64(-0.5), f64(-0.9), beta=2.0, gamma=0.5)
    assert got.loss.item() == pytest.approx(nll_of_sigmoid(0.8 - 0.5), abs=1e-12)
    assert got.chosen_rewards.item() == pytest.approx(-1.0, abs=1e-12)
    assert got.rejected_rewards.item() == pytest.approx(-1.8, abs=1e-12)


@pytest.mark.parametrize(("chosen", "rejected"), [(-0.5, -0.9), (-2.0, -0.01), (-1e-4, -30.0)])
def test_orpo_loss_by_hand(chosen: float, rejected: float) -> None:
    odds = [math.exp(x) / -math.expm1(x) for x in (chosen, rejected)]
    ratio = nll_of_sigmoid(math.log(odds[0]) - math.log(odds[1]))
    got = ls.orpo_loss(f64(chosen), f64(rejected), lam=0.25)
    assert got.loss.item() == pytest.approx(-chosen + 0.25 * ratio, abs=1e-12)
    assert got.chosen_rewards.item() == pytest.approx(0.25 * chosen, abs=1e-12)


def test_orpo_is_finite_for_an_answer_that_is_certain_or_impossible() -> None:
    chosen = torch.tensor([0.0, -500.0], requires_grad=True)
    rejected = torch.tensor([-500.0, 0.0], requires_grad=True)
    loss = ls.orpo_loss(chosen, rejected).loss
    loss.sum().backward()
    assert loss.isfinite().all()
    for x in (chosen, rejected):
        assert x.grad is not None
        assert x.grad.isfinite().all()


def test_kto_loss_by_hand() -> None:
    policy, ref = f64(-10.0, -10.0), f64(-12.0, -12.0)  # r = 2
    got = ls.kto_loss(policy, ref, torch.tensor([True, False]), f64(0.5)[0], 0.1, 1.5, 2.0)
    sigma = 1 / (1 + math.exp(-0.15))
    assert got.loss.tolist() == pytest.approx([1.5 * (1 - sigma), 2.0 * sigma], abs=1e-12)
    assert got.rewards.tolist() == pytest.approx([0.2, 0.2], abs=1e-12)


def test_kto_baseline_is_the_global_mean_and_never_negative() -> None:
    mine, theirs = (f64(-1.0, -2.0), f64(-2.0, -4.0)), f64(9.0, 1.0)  # this rank 3/2, another 9/1

    def alone(x: Tensor) -> Tensor:
        return x

    assert ls.kto_kl_baseline(*mine, alone).item() == pytest.approx(1.5, abs=1e-12)
    both = ls.kto_kl_baseline(*mine, reduce=lambda x: x + theirs)
    assert both.item() == pytest.approx(4.0, abs=1e-12)
    assert ls.kto_kl_baseline(mine[1], mine[0], alone).item() == 0.0


@pytest.mark.parametrize("loss", [ls.dpo_loss, ls.ipo_loss])
def test_implicit_rewards_carry_no_gradient(loss: type) -> None:
    policy = f64(-1.0).requires_grad_()
    got = loss(policy, policy, REF_CHOSEN, REF_REJECTED)
    assert got.loss.requires_grad
    assert not got.chosen_rewards.requires_grad
