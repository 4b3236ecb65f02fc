"""Log-probs and entropy against float64 Python loops."""

import math
from collections.abc import Sequence

import pytest
import torch
from rlhf_trainer import logprobs as lp
from torch import Tensor

N, V = 8, 7


def by_hand(logits_V: Sequence[float], temperature: float) -> list[float]:
    """log softmax of one row, in plain float64."""
    z = [x / temperature for x in logits_V]
    log_norm = max(z) + math.log(sum(math.exp(x - max(z)) for x in z))
    return [x - log_norm for x in z]


def batch() -> tuple[Tensor, Tensor]:
    """logits (N, V), targets (N,)."""
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(N, V, generator=g, dtype=torch.float64)
    return logits, torch.randint(V, (N,), generator=g)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_targets_are_scored_at_the_sampling_temperature(temperature: float) -> None:
    logits, targets = batch()
    got = lp.packed_logprobs(logits, targets, temperature)
    assert got.shape == (N,)
    for n in range(N):
        want = by_hand(logits[n].tolist(), temperature)[int(targets[n])]
        assert got[n].item() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropy_is_that_of_the_tempered_distribution(temperature: float) -> None:
    logits, targets = batch()
    got = lp.packed_logprobs_and_entropy(logits, targets, temperature)
    torch.testing.assert_close(got.logprobs, lp.packed_logprobs(logits, targets, temperature))
    for n in range(N):
        want = -sum(math.exp(x) * x for x in by_hand(logits[n].tolist(), temperature))
        assert got.entropy[n].item() == pytest.approx(want, abs=1e-12)


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
    logits, targets = batch()
    before = logits.clone()
    lp.packed_logprobs(logits, targets, 0.5)
    torch.testing.assert_close(logits, before, rtol=0, atol=0)


def test_bf16_logits_are_scored_in_fp32() -> None:
    logits, targets = batch()
    half = logits.bfloat16()
    got = lp.packed_logprobs(half, targets, 0.7)
    assert got.dtype == torch.float32
    want = lp.packed_logprobs(half.double(), targets, 0.7)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
