"""Log-probs and entropy against float64 Python loops."""

import math
from collections.abc import Sequence

import pytest
import torch
from rlhf_trainer import logprobs as lp
from torch import Tensor

B, T, V = 2, 5, 7


def by_hand(logits_V: Sequence[float], temperature: float) -> list[float]:
    """log softmax of one row, in plain float64."""
    z = [x / temperature for x in logits_V]
    log_norm = max(z) + math.log(sum(math.exp(x - max(z)) for x in z))
    return [x - log_norm for x in z]


def batch() -> tuple[Tensor, Tensor]:
    """logits (B, T, V), tokens (B, T)."""
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(B, T, V, generator=g, dtype=torch.float64)
    return logits, torch.randint(V, (B, T), generator=g)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_logits_at_t_minus_1_score_token_t_at_the_sampling_temperature(temperature: float) -> None:
    logits, tokens = batch()
    got = lp.token_logprobs(logits, tokens, temperature)
    assert got.shape == (B, T - 1)
    for b in range(B):
        for t in range(1, T):
            want = by_hand(logits[b, t - 1].tolist(), temperature)[int(tokens[b, t])]
            assert got[b, t - 1].item() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropy_is_that_of_the_tempered_distribution(temperature: float) -> None:
    logits, tokens = batch()
    got = lp.token_logprobs_and_entropy(logits, tokens, temperature)
    torch.testing.assert_close(got.logprobs, lp.token_logprobs(logits, tokens, temperature))
    for b in range(B):
        for t in range(1, T):
            logp = by_hand(logits[b, t - 1].tolist(), temperature)
            want = -sum(math.exp(x) * x for x in logp)
            assert got.entropy[b, t - 1].item() == pytest.approx(want, abs=1e-12)


def test_uniform_logits_have_log_v_nats_of_entropy() -> None:
    got = lp.packed_logprobs_and_entropy(torch.zeros(1, 8), torch.tensor([3]))
    assert got.logprobs.item() == pytest.approx(-math.log(8), abs=1e-6)
    assert got.entropy.item() == pytest.approx(math.log(8), abs=1e-6)


def test_a_forbidden_token_leaves_entropy_and_gradient_finite() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    got = lp.packed_logprobs_and_entropy(logits, torch.tensor([0]))
    assert got.entropy.item() == pytest.approx(math.log(2), abs=1e-6)
    (got.entropy + got.logprobs).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[0.5, -0.5, 0.0]]))


def test_temperature_leaves_the_callers_logits_alone() -> None:
    logits, tokens = batch()
    before = logits.clone()
    lp.token_logprobs(logits, tokens, 0.5)
    torch.testing.assert_close(logits, before, rtol=0, atol=0)


def test_bf16_logits_are_scored_in_fp32() -> None:
    logits, tokens = batch()
    half = logits.bfloat16()
    got = lp.token_logprobs(half, tokens, 0.7)
    assert got.dtype == torch.float32
    want = lp.token_logprobs(half.double(), tokens, 0.7)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)


def test_sequence_logprobs_sum_or_average_the_response_and_ignore_the_rest() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -math.inf], [-0.5, math.nan, -0.25], [-3.0, -3.0, -3.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 0, 0]])
    torch.testing.assert_close(lp.sum_logprobs(logprobs, mask), torch.tensor([-3.0, -0.75, 0.0]))
    torch.testing.assert_close(lp.mean_logprobs(logprobs, mask), torch.tensor([-1.5, -0.375, 0.0]))
