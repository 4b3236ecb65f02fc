"""Log-probs and entropy against float64 Python loops; the chunked form against the plain one."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rlhf_trainer import logprobs as lp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

B, T, V, H = 2, 5, 7, 4


def by_hand(logits_V: Sequence[float], temperature: float) -> list[float]:
    """log softmax of one row, in plain float64."""
    z = [x / temperature for x in logits_V]
    log_norm = max(z) + math.log(sum(math.exp(x - max(z)) for x in z))
    return [x - log_norm for x in z]


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden (B, T, H), head weight (V, H), logits (B, T, V), tokens (B, T)."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B, T, H, generator=g, dtype=torch.float64)
    weight = torch.randn(V, H, generator=g, dtype=torch.float64)
    return hidden, weight, hidden @ weight.t(), torch.randint(V, (B, T), generator=g)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_logits_at_t_minus_1_score_token_t_at_the_sampling_temperature(temperature: float) -> None:
    _, _, logits, tokens = batch()
    got = lp.token_logprobs(logits, tokens, temperature)
    assert got.shape == (B, T - 1)
    for b in range(B):
        for t in range(1, T):
            want = by_hand(logits[b, t - 1].tolist(), temperature)[int(tokens[b, t])]
            assert got[b, t - 1].item() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropy_is_that_of_the_tempered_distribution(temperature: float) -> None:
    _, _, logits, tokens = batch()
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
    _, _, logits, tokens = batch()
    before = logits.clone()
    lp.token_logprobs(logits, tokens, 0.5)
    torch.testing.assert_close(logits, before, rtol=0, atol=0)


def test_bf16_logits_are_scored_in_fp32() -> None:
    _, _, logits, tokens = batch()
    half = logits.bfloat16()
    got = lp.token_logprobs(half, tokens, 0.7)
    assert got.dtype == torch.float32
    want = lp.token_logprobs(half.double(), tokens, 0.7)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunk_tokens", [1, 3, 8, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_equals_plain_in_value_and_gradient(chunk_tokens: int, temperature: float) -> None:
    hidden, weight, _, tokens = batch()
    hidden.requires_grad_()
    weight.requires_grad_()
    plain = lp.token_logprobs_and_entropy(hidden @ weight.t(), tokens, temperature)
    chunked = lp.chunked_token_logprobs_and_entropy(
        hidden, weight, tokens, temperature, chunk_tokens
    )
    torch.testing.assert_close(chunked, plain, rtol=0, atol=1e-12)
    scale = torch.linspace(-1, 2, B * (T - 1), dtype=torch.float64).view(B, T - 1)
    grads = [
        torch.autograd.grad(
            (scale * x.logprobs + scale.square() * x.entropy).sum(), (hidden, weight)
        )
        for x in (plain, chunked)
    ]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk_tokens", [2, 100])
def test_chunked_logprobs_pass_gradcheck(chunk_tokens: int) -> None:
    hidden, weight, _, tokens = batch()
    packed = hidden[:, :-1].reshape(-1, H).requires_grad_()
    targets = tokens[:, 1:].reshape(-1)
    weight.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h, w: lp.chunked_packed_logprobs(h, w, targets, 0.7, chunk_tokens), (packed, weight)
    )
    assert torch.autograd.gradcheck(
        lambda h, w: tuple(
            lp.chunked_packed_logprobs_and_entropy(h, w, targets, 0.7, chunk_tokens)
        ),
        (packed, weight),
    )
    assert torch.autograd.gradcheck(
        lambda h, w: (
            lp.chunked_packed_logprobs_and_entropy(h, w, targets, 0.7, chunk_tokens).entropy
        ),
        (packed, weight),
    )


def test_chunked_bf16_equals_the_heads_own_bf16_logits_scored_in_fp32() -> None:
    hidden, weight, _, tokens = batch()
    hidden, weight = hidden.bfloat16(), weight.bfloat16().requires_grad_()
    got = lp.chunked_token_logprobs(hidden, weight, tokens, chunk_tokens=3)
    assert got.dtype == torch.float32
    want = lp.token_logprobs(hidden @ weight.t(), tokens)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    (grad,) = torch.autograd.grad(got.sum(), weight)
    assert grad.dtype == torch.bfloat16


def test_chunked_with_a_mask_scores_the_response_alone() -> None:
    hidden, weight, _, tokens = batch()
    hidden.requires_grad_()
    mask = torch.tensor([[False, True, True, False], [False, False, True, True]])
    hidden.data[0, 0] = math.nan  # a prompt position that must not be read
    got = lp.chunked_token_logprobs_and_entropy(hidden, weight, tokens, 0.7, 3, response_mask=mask)
    plain = lp.token_logprobs_and_entropy(hidden @ weight.t(), tokens, 0.7)
    for mine, whole in zip(got, plain, strict=True):
        torch.testing.assert_close(mine[mask], whole[mask], rtol=0, atol=1e-12)
        assert mine[~mask].eq(0).all()
    (grad,) = torch.autograd.grad(got.logprobs.sum(), hidden)
    assert grad.isfinite().all()
    assert grad[:, :-1][~mask].eq(0).all()


def test_chunked_without_a_single_token_gives_zero_gradients() -> None:
    hidden, weight, _, tokens = batch()
    weight.requires_grad_()
    none = torch.zeros(B, T - 1, dtype=torch.bool)
    got = lp.chunked_token_logprobs(hidden, weight, tokens, response_mask=none)
    (grad,) = torch.autograd.grad(got.sum(), weight)
    assert got.eq(0).all()
    assert grad.eq(0).all()


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_chunked_never_holds_more_logits_than_one_chunks_in_either_direction() -> None:
    tokens, vocabulary, chunk = 64, 512, 8
    hidden = torch.randn(tokens, H, requires_grad=True)
    weight, targets = torch.randn(vocabulary, H), torch.zeros(tokens, dtype=torch.long)
    with LargestTensor() as largest:
        out = lp.chunked_packed_logprobs_and_entropy(hidden, weight, targets, 0.7, chunk)
        (out.logprobs + out.entropy).sum().backward()
    assert largest.numel == chunk * vocabulary


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(0, 9), chunk=st.integers(1, 10), seed=st.integers(0, 1000))
def test_any_chunking_gives_the_same_numbers(tokens: int, chunk: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, H, generator=g, dtype=torch.float64)
    weight = torch.randn(V, H, generator=g, dtype=torch.float64)
    targets = torch.randint(V, (tokens,), generator=g)
    got = lp.chunked_packed_logprobs_and_entropy(hidden, weight, targets, 1.3, chunk)
    want = lp.packed_logprobs_and_entropy(hidden @ weight.t(), targets, 1.3)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_sequence_logprobs_sum_or_average_the_response_and_ignore_the_rest() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -math.inf], [-0.5, math.nan, -0.25], [-3.0, -3.0, -3.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 0, 0]])
    torch.testing.assert_close(lp.sum_logprobs(logprobs, mask), torch.tensor([-3.0, -0.75, 0.0]))
    torch.testing.assert_close(lp.mean_logprobs(logprobs, mask), torch.tensor([-1.5, -0.375, 0.0]))
