"""One token a row from its logits, as a function of a uniform number that belongs to the row.

Inverse-transform sampling needs one number a token, where Gumbel noise needs one a vocabulary
entry: so the numbers of a whole rollout can be drawn beforehand, by global row, and a row's
response does not depend on which rank or batch it was in (up to rounding of its logits).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Sampling(NamedTuple):
    """How a token is chosen; temperature 0 takes the likeliest."""

    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0


class Responses(NamedTuple):
    """What was sampled, in the order of the prompts."""

    tokens: list[list[int]]  # with the end-of-sequence token where there is one
    finished: list[bool]  # ended by itself
    logprobs: list[list[float]] | None = None  # of the tokens, where it was not the actor


def sample(
    logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling, forbidden: Sequence[int] = ()
) -> Tensor:
    """Token of each row (B,): the first whose cumulated probability exceeds the row's number.

    `uniform_B` in [0, 1); `forbidden` tokens are never taken.
    """
    logits_BV = logits_BV.float()
    if forbidden:
        logits_BV = logits_BV.clone()
        logits_BV[:, list(forbidden)] = -torch.inf
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    probs_BV = _truncated((logits_BV / sampling.temperature).softmax(-1), sampling)
    cumulated_BV = probs_BV.double().cumsum(-1)
    threshold_B1 = uniform_B.double()[:, None] * cumulated_BV[:, -1:]
    tokens_B = torch.searchsorted(cumulated_BV, threshold_B1, right=True).squeeze(1)
    return tokens_B.clamp_max(logits_BV.shape[-1] - 1)


def _truncated(probs_BV: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities outside top-k and top-p at 0, without renormalising.

    Top-p keeps the likeliest tokens up to the one that reaches the mass, as transformers does.
    """
    vocabulary = probs_BV.shape[-1]
    if 0 < sampling.top_k < vocabulary:
        kept_BK, index_BK = probs_BV.topk(sampling.top_k, dim=-1)
        probs_BV = torch.zeros_like(probs_BV).scatter(-1, index_BK, kept_BK)
    if sampling.top_p < 1:
        sorted_BV, index_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
        mass_BV = sorted_BV.double().cumsum(-1)
        before_BV = mass_BV - sorted_BV
        sorted_BV = sorted_BV.masked_fill(before_BV >= sampling.top_p * mass_BV[:, -1:], 0.0)
        probs_BV = torch.zeros_like(probs_BV).scatter(-1, index_BV, sorted_BV)
    return probs_BV
