"""Attention on packed rows against its equation, for short rows and long ones."""

from __future__ import annotations

import pytest
import torch
from rlhf_trainer.sequences import SHORT, causal_attention
from torch import Tensor


def by_the_equation(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """softmax(q kᵀ·scale + mask) v, key head h//(H/K) for query head h."""
    shared = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
    time = torch.arange(q.shape[2])
    past = time[:, None] - time[None, :]
    hidden = (past < 0) | (past >= (window or len(time)))
    scores = (torch.einsum("bhtd,bhsd->bhts", q, k) * scale).masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("heads", "keys"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("time", [1, 7, SHORT, SHORT + 1])
def test_attention_and_its_gradients_are_the_equations(
    time: int, heads: int, keys: int, window: int | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, time, 8), (2, keys, time, 8), (2, keys, time, 8)]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    towards = torch.randn(shapes[0], generator=generator, dtype=torch.float64)
    seen = []
    for attention in (causal_attention, by_the_equation):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = attention(*leaves, 0.3, window)
        seen.append([out, *torch.autograd.grad(out, leaves, towards)])
    for ours, expected in zip(*seen, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
