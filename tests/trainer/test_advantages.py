"""Advantage estimators against float64 Python loops over one sequence at a time."""

import math
import statistics
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rlhf_trainer import advantages as adv
from rlhf_trainer.rewards import kl_penalty_rewards
from torch import Tensor

F64 = torch.float64


def gae_alone(
    rewards: list[float], values: list[float], gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """GAE by its definition A_t = Σ_l (γλ)^l δ_{t+l}, of one response without pads."""
    n = len(rewards)
    after = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(n)]
    advantages = [sum((gamma * lam) ** (i - t) * deltas[i] for i in range(t, n)) for t in range(n)]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def test_gae_by_hand() -> None:
    rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]])
    got = adv.gae(rewards, values, torch.ones(1, 2), gamma=0.9, lam=0.8)
    # δ_1 = 1 - 0.25 = 0.75;  δ_0 = 0.9·0.25 - 0.5 = -0.275;  A_0 = -0.275 + 0.72·0.75 = 0.265
    torch.testing.assert_close(got.advantages, torch.tensor([[0.265, 0.75]]))
    torch.testing.assert_close(got.returns, torch.tensor([[0.765, 1.0]]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (1.0, 1.0), (0.9, 0.8), (1.0, 0.0)])
def test_sequences_of_different_length_padded_together_equal_each_alone(
    gamma: float, lam: float
) -> None:
    g = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(2, 3, 8, generator=g, dtype=F64).unbind()
    spans = [(2, 7), (3, 5), (0, 8)]  # the response of each row, prompt before it, pads after it
    mask = torch.zeros(3, 8, dtype=torch.bool)
    for row, (start, stop) in enumerate(spans):
        mask[row, start:stop] = True
    rewards[~mask] = math.nan  # garbage over prompt and pads must not leak
    values[~mask] = 1e9
    got = adv.gae(rewards, values, mask, gamma, lam)
    assert got.advantages[~mask].eq(0).all()
    assert got.returns[~mask].eq(0).all()
    for row, (start, stop) in enumerate(spans):
        want = gae_alone(
            rewards[row, start:stop].tolist(), values[row, start:stop].tolist(), gamma, lam
        )
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(
                mine[row, start:stop], torch.tensor(theirs, dtype=F64), rtol=0, atol=1e-12
            )


def test_the_value_after_the_last_response_token_counts_as_zero() -> None:
    values = torch.tensor([[0.5, 7.0]])
    got = adv.gae(torch.tensor([[1.0, 0.0]]), values, torch.tensor([[True, False]]))
    assert got.advantages.tolist() == [[0.5, 0.0]]


def test_tool_output_between_two_turns_is_stepped_over() -> None:
    mask = torch.tensor([[1, 1, 0, 0, 1]])
    rewards = torch.tensor([[0.1, 0.2, 9.0, 9.0, 1.0]], dtype=F64)
    values = torch.tensor([[0.5, 0.6, 9.0, 9.0, 0.7]], dtype=F64)
    got = adv.gae(rewards, values, mask, 0.9, 0.8)
    want, _ = gae_alone([0.1, 0.2, 1.0], [0.5, 0.6, 0.7], 0.9, 0.8)
    expected = torch.tensor([[want[0], want[1], 0.0, 0.0, want[2]]], dtype=F64)
    torch.testing.assert_close(got.advantages, expected, rtol=0, atol=1e-12)


def at_the_last_token_and_one_later(lam: float) -> tuple[list[float], list[float]]:
    """Advantages of 3 response tokens with the score on the 3rd, and on a 4th after EOS (V = 0)."""
    zeros, mask = torch.zeros(1, 4, dtype=F64), torch.tensor([[1, 1, 1, 0]])
    values = torch.tensor([[0.3, 0.2, 0.1, 0.0]], dtype=F64)
    ours = kl_penalty_rewards(torch.tensor([2.0], dtype=F64), zeros, zeros, mask, 0.05)
    later, _ = gae_alone([0.0, 0.0, 0.0, 2.0], [0.3, 0.2, 0.1, 0.0], 1.0, lam)
    return adv.gae(ours, values, mask, 1.0, lam).advantages[0, :3].tolist(), later[:3]


def test_score_at_the_last_response_token_differs_from_eos_plus_1_at_lambda_095() -> None:
    ours, later = at_the_last_token_and_one_later(lam=0.95)
    # δ = -0.1, -0.1, 1.9: A_2 = 1.9, A_1 = -0.1 + 0.95·1.9, A_0 = -0.1 + 0.95·A_1
    assert ours == pytest.approx([1.51975, 1.705, 1.9], abs=1e-12)
    assert later[2] == pytest.approx(1.8, abs=1e-12)  # -0.1 + 0.95·2


def test_score_at_the_last_response_token_agrees_with_eos_plus_1_at_lambda_1() -> None:
    ours, later = at_the_last_token_and_one_later(lam=1.0)
    assert ours == pytest.approx(later, abs=1e-12)


def test_a_row_without_response_tokens_is_zero() -> None:
    got = adv.gae(torch.ones(1, 3), torch.ones(1, 3), torch.zeros(1, 3))
    assert got.advantages.eq(0).all()
    assert got.returns.eq(0).all()


def test_gae_leaves_its_inputs_alone_and_carries_no_gradient() -> None:
    rewards, values = torch.ones(1, 3), torch.ones(1, 3, requires_grad=True)
    got = adv.gae(rewards, values, torch.ones(1, 3))
    assert rewards.tolist() == [[1.0, 1.0, 1.0]]
    assert not got.advantages.requires_grad


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    lead=st.integers(0, 3),
    lam=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_gae_of_any_padded_batch_equals_each_sequence_alone(
    lengths: list[int], lead: int, lam: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    shape = (len(lengths), lead + max(lengths) + 1)
    rewards, values = torch.randn(2, *shape, generator=g, dtype=F64).unbind()
    position = torch.arange(shape[1])
    mask = (position >= lead) & (position < lead + torch.tensor(lengths)[:, None])
    got = adv.gae(rewards, values, mask, 0.97, lam)
    for row in range(len(lengths)):
        kept = mask[row]
        want, _ = gae_alone(rewards[row, kept].tolist(), values[row, kept].tolist(), 0.97, lam)
        assert got.advantages[row, kept].tolist() == pytest.approx(want, abs=1e-9)


def test_whitening_uses_the_population_variance_of_the_response_tokens_only() -> None:
    x = torch.tensor([[1.0, 2.0, 1e6], [6.0, math.nan, math.inf]], dtype=F64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    mean, var = 3.0, 14 / 3  # ((-2)² + (-1)² + 3²)/3, not /2
    want = [[(v - mean) / math.sqrt(var + 1e-8) for v in (1.0, 2.0)], [3 / math.sqrt(var + 1e-8)]]
    got = adv.whiten(x, mask)
    assert got[mask].tolist() == pytest.approx([*want[0], *want[1]], abs=1e-12)
    assert got[~mask].eq(0).all()


def test_whitening_of_equal_values_is_zero_and_of_nothing_is_empty() -> None:
    assert adv.whiten(torch.full((1, 3), 0.1), torch.ones(1, 3)).eq(0).all()
    assert adv.whiten(torch.ones(1, 3), torch.zeros(1, 3)).eq(0).all()


def test_grpo_divides_by_the_sample_std_of_the_group() -> None:
    scores = [[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]]
    got = adv.grpo_advantages(torch.tensor(scores, dtype=F64))
    for row, group in zip(got.tolist(), scores, strict=True):
        mean, std = statistics.fmean(group), statistics.stdev(group)
        assert row == pytest.approx([(s - mean) / (std + 1e-6) for s in group], abs=1e-12)


def test_grpo_without_std_only_centres() -> None:
    got = adv.grpo_advantages(torch.tensor([[1.0, 2.0, 6.0]]), divide_by_std=False)
    assert got.tolist() == [[-2.0, -1.0, 3.0]]


def test_a_group_of_equal_scores_teaches_nothing() -> None:
    got = adv.grpo_advantages(torch.full((1, 3), 0.1))
    assert got.abs().max() < 1e-6


def test_rloo_compares_each_answer_with_the_mean_of_the_others() -> None:
    got = adv.rloo_advantages(torch.tensor([[1.0, 2.0, 6.0]], dtype=F64))
    assert got[0].tolist() == pytest.approx([1 - 4.0, 2 - 3.5, 6 - 1.5], abs=1e-12)


@pytest.mark.parametrize("estimator", [adv.grpo_advantages, adv.rloo_advantages])
def test_a_group_of_one_answer_is_refused(estimator: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        estimator(torch.zeros(4, 1))


def test_reinforce_plus_plus_whitens_the_discounted_rewards_to_go() -> None:
    rewards = torch.tensor([[math.nan, 1.0, 2.0], [4.0, 0.5, math.nan]], dtype=F64)
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]]).bool()
    got = adv.reinforce_plus_plus_advantages(rewards, mask, gamma=0.5)
    to_go = [1 + 0.5 * 2, 2.0, 4 + 0.5 * 0.5, 0.5]
    mean, var = statistics.fmean(to_go), statistics.pvariance(to_go)
    want = [(r - mean) / math.sqrt(var + 1e-8) for r in to_go]
    assert got.returns[mask].tolist() == pytest.approx(to_go, abs=1e-12)
    assert got.advantages[mask].tolist() == pytest.approx(want, abs=1e-12)
    assert got.advantages[~mask].eq(0).all()


def test_one_advantage_a_sequence_reaches_its_response_tokens_only() -> None:
    got = adv.spread_over_tokens(torch.tensor([2.0, -1.0]), torch.tensor([[0, 1, 1], [1, 0, 0]]))
    assert got.tolist() == [[0.0, 2.0, 2.0], [-1.0, 0.0, 0.0]]
