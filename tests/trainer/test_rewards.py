"""KL penalty, score shaping and β control, against numbers worked by hand."""

import math

import pytest
import torch
from rlhf_trainer import rewards as rw

F64 = torch.float64


@pytest.mark.parametrize(
    ("estimator", "x", "want"),
    [
        ("k1", 0.5, 0.5),
        ("k1", -0.5, -0.5),
        ("k2", 0.5, 0.125),
        ("k2", -0.5, 0.125),
        ("k3", 0.5, 0.1065306597126334),  # e^-0.5 - 1 + 0.5
        ("k3", -0.5, 0.1487212707001282),  # e^0.5 - 1 - 0.5
        ("k1", 12.0, 10.0),
        ("k1", -12.0, -10.0),
        ("k2", 12.0, 10.0),
        ("k3", -12.0, 10.0),
    ],
)
def test_kl_estimators_by_hand_and_clamped_at_10(
    estimator: rw.KLEstimator, x: float, want: float
) -> None:
    ref = torch.tensor([-3.0], dtype=F64)
    assert rw.kl_estimate(ref + x, ref, estimator).item() == pytest.approx(want, abs=1e-12)


def test_unknown_kl_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="k4"):
        rw.kl_estimate(torch.zeros(1), torch.zeros(1), "k4")  # type: ignore[arg-type]


def test_k1_and_k3_average_to_the_exact_kl_over_the_policys_own_tokens() -> None:
    p, q = [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]
    exact = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    log_p, log_q = (torch.tensor(x, dtype=F64).log() for x in (p, q))
    for estimator in ("k1", "k3"):
        kl = rw.kl_estimate(log_p, log_q, estimator)
        assert float((kl * log_p.exp()).sum()) == pytest.approx(exact, abs=1e-12)


def test_a_huge_log_ratio_leaves_k3_and_its_gradient_finite() -> None:
    logprobs = torch.tensor([-1000.0, -1.0], requires_grad=True)
    kl = rw.kl_estimate(logprobs, torch.tensor([-1.0, -1.0]), "k3")
    kl.sum().backward()
    assert kl.tolist() == [10.0, 0.0]
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()


def test_the_score_lands_on_the_last_response_token_and_each_token_pays_its_kl() -> None:
    logprobs = torch.tensor([[-1.0, -1.0, -2.0, -9.0], [-1.0, -0.5, -3.0, -1.0]], dtype=F64)
    ref = torch.tensor([[-5.0, -1.5, -1.0, -1.0], [-2.0, -1.0, -2.0, -1.25]], dtype=F64)
    mask = torch.tensor([[False, True, True, False], [True, True, True, True]])
    scores = torch.tensor([5.0, -1.0], dtype=F64)
    got = rw.kl_penalty_rewards(scores, logprobs, ref, mask, kl_coef=0.1)
    want = [[0.0, -0.05, 0.1 + 5.0, 0.0], [-0.1, -0.05, 0.1, -0.025 - 1.0]]
    torch.testing.assert_close(got, torch.tensor(want, dtype=F64), rtol=0, atol=1e-12)


def test_the_kl_of_the_rewards_follows_the_chosen_estimator() -> None:
    logprobs, ref = torch.full((1, 2), -1.0, dtype=F64), torch.full((1, 2), -1.5, dtype=F64)
    mask = torch.ones(1, 2)
    got = rw.kl_penalty_rewards(torch.tensor([99.0]), logprobs, ref, mask, 1.0, "k2")
    torch.testing.assert_close(got, torch.tensor([[-0.125, 98.875]], dtype=F64))


def test_what_lies_off_the_mask_is_never_read() -> None:
    bad = torch.tensor([[math.nan, -1.0, -math.inf]])
    mask = torch.tensor([[0, 1, 0]])
    got = rw.kl_penalty_rewards(torch.tensor([2.0]), bad, bad.clone(), mask, 0.1)
    assert got.tolist() == [[0.0, 2.0, 0.0]]


def test_an_empty_response_gets_no_reward() -> None:
    zeros = torch.zeros(1, 3)
    got = rw.kl_penalty_rewards(torch.tensor([2.0]), zeros, zeros, zeros.bool(), 0.1)
    assert got.tolist() == [[0.0, 0.0, 0.0]]


def test_scores_are_normalised_with_the_moments_of_the_checkpoint() -> None:
    got = rw.normalise_scores(torch.tensor([1.0, 3.0], dtype=F64), mean=2.0, std=4.0)
    assert got.tolist() == [-0.25, 0.25]
    assert rw.normalise_scores(torch.tensor([2.0]), mean=2.0, std=0.0).tolist() == [0.0]


def test_only_a_response_without_eos_pays_the_penalty() -> None:
    got = rw.missing_eos_penalty(torch.tensor([1.0, 1.0]), torch.tensor([True, False]), 3.0)
    assert got.tolist() == [1.0, -2.0]


def test_overlong_penalty_is_soft_as_in_dapo() -> None:
    lengths = torch.tensor([10, 80, 85, 90, 100, 150])
    got = rw.overlong_penalty(lengths, max_length=100, buffer_length=20)
    torch.testing.assert_close(got, torch.tensor([0.0, 0.0, -0.25, -0.5, -1.0, -1.0]))
    with pytest.raises(ValueError, match="buffer_length"):
        rw.overlong_penalty(lengths, max_length=100, buffer_length=0)


def test_several_rewards_are_weighted() -> None:
    scores = {"helpful": torch.tensor([1.0, 2.0]), "short": torch.tensor([10.0, -10.0])}
    got = rw.weighted_sum(scores, {"short": 0.1, "helpful": 2.0})
    torch.testing.assert_close(got, torch.tensor([3.0, 3.0]))


@pytest.mark.parametrize(
    "weights", [{}, {"helpful": 1.0}, {"helpful": 1.0, "short": 1.0, "x": 1.0}]
)
def test_rewards_and_weights_of_different_names_are_refused(weights: dict[str, float]) -> None:
    scores = {"helpful": torch.zeros(1), "short": torch.zeros(1)}
    with pytest.raises(ValueError, match="must match"):
        rw.weighted_sum(scores, weights)


def test_fixed_kl_stays() -> None:
    controller = rw.FixedKL(0.02)
    assert controller.update(1000.0, 512) == 0.02
    restored = rw.FixedKL(9.0)
    restored.load_state_dict(controller.state_dict())
    assert restored.coef == 0.02


@pytest.mark.parametrize(
    ("kl", "want"),
    [
        (6.0, 0.2),
        (6.6, 0.2 * (1 + 0.1 * 0.05)),
        (60.0, 0.2 * (1 + 0.2 * 0.05)),
        (5.7, 0.2 * (1 - 0.05 * 0.05)),
        (-3.0, 0.2 * (1 - 0.2 * 0.05)),
    ],
)
def test_adaptive_kl_moves_beta_towards_the_target_by_a_fifth_at_most(
    kl: float, want: float
) -> None:
    controller = rw.AdaptiveKL(0.2, target=6.0, horizon=10_000)
    assert controller.update(kl, 500) == pytest.approx(want, abs=1e-15)


def test_adaptive_kl_keeps_beta_positive_past_its_horizon() -> None:
    assert rw.AdaptiveKL(1.0, horizon=10).update(0.0, 1000) == pytest.approx(0.8)


def test_adaptive_kl_refuses_a_kl_that_is_not_finite_and_keeps_beta() -> None:
    controller = rw.AdaptiveKL(0.2)
    with pytest.raises(ValueError, match="nan"):
        controller.update(math.nan, 10)
    assert controller.coef == 0.2


def test_adaptive_kl_resumes_where_it_stopped() -> None:
    whole, first = rw.AdaptiveKL(0.2), rw.AdaptiveKL(0.2)
    for kl in (3.0, 9.0):
        whole.update(kl, 512)
        first.update(kl, 512)
    resumed = rw.AdaptiveKL(0.7)
    resumed.load_state_dict(first.state_dict())
    assert resumed.update(8.0, 512) == whole.update(8.0, 512)
