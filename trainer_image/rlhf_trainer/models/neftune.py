"""NEFTune: noise on the embeddings of what is trained on.

    x̃ = x + α/√(L·H) · u,  u uniform in (−1, 1)      of a row with L tokens, H its embeddings' width

Source: Jain et al. 2024 (NEFTune), alg. 1. L is each row's own length, and its noise a function of
its seed: packing, micro-batches and ranks change nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def noise_seed(seed: int, step: int, row_id: str) -> int:
    """Of a row in a step of a job with a seed."""
    digest = hashlib.sha256(f"{seed} {step} {row_id}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


@contextmanager
def noisy_embeddings(
    embedding: nn.Module, lengths: Sequence[int], seeds: Sequence[int], alpha: float
) -> Iterator[None]:
    """Within it these rows, end to end or one below the other, are embedded with noise."""

    def with_noise(_: Any, __: Any, x_BTH: Tensor) -> Tensor:
        noise_BTH = torch.zeros_like(x_BTH)
        rows = _rows_of(noise_BTH, lengths)
        for row_TH, length, seed in zip(rows, lengths, seeds, strict=True):
            generator = torch.Generator(x_BTH.device).manual_seed(seed)
            most = alpha / math.sqrt(length * x_BTH.shape[-1])
            drawn = torch.empty(row_TH.shape, device=x_BTH.device)
            row_TH.copy_(drawn.uniform_(-most, most, generator=generator))
        return x_BTH + noise_BTH

    hook = embedding.register_forward_hook(with_noise)
    try:
        yield
    finally:
        hook.remove()


def _rows_of(x_BTH: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Views of each row's tokens."""
    if len(x_BTH) == 1:
        return list(torch.split(x_BTH[0], list(lengths)))
    return [row[:length] for row, length in zip(x_BTH, lengths, strict=True)]
