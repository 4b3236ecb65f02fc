"""Log-probabilities and entropy of the tokens that a model was shown.

Alignment, everywhere in this package: the logits (and values) at position t−1 score token t, so a
row of T tokens has T−1 log-probs and column j of the result belongs to token j+1. Masks that go
with log-probs have T−1 columns as well: `response_mask_BT[:, 1:]`.

Numerics: fp32 whatever the input (float64 stays float64).

Shapes: B batch, T time, N packed tokens (any B and T ravelled), V vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class TokenLogprobs(NamedTuple):
    """Log-prob of each shown token and entropy of the distribution it came from, both in nats."""

    logprobs: Tensor
    entropy: Tensor


def upcast(x: Tensor) -> Tensor:
    """`x` in fp32, or as it is when it is float64: half precision never enters a loss."""
    return x if x.dtype == torch.float64 else x.float()


def packed_logprobs(logits_NV: Tensor, targets_N: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(z/τ)[y] of N (logits, target) pairs that are aligned already: (N,), nats."""
    logp_NV = _log_softmax(logits_NV, temperature)
    return logp_NV.gather(-1, targets_N.unsqueeze(-1)).squeeze(-1)


def packed_logprobs_and_entropy(
    logits_NV: Tensor, targets_N: Tensor, temperature: float = 1.0
) -> TokenLogprobs:
    """As `packed_logprobs`, with the entropy H = −Σ_v p_v log p_v of softmax(z/τ): (N,) each.

    Logits of −inf (a forbidden token) count as p log p = 0.
    """
    logp_NV = _log_softmax(logits_NV, temperature)
    logprobs_N = logp_NV.gather(-1, targets_N.unsqueeze(-1)).squeeze(-1)
    finite_NV = logp_NV.clamp_min(torch.finfo(logp_NV.dtype).min)  # 0·(−inf) would be NaN
    return TokenLogprobs(logprobs_N, -(logp_NV.exp() * finite_NV).sum(-1))


def token_logprobs(logits_BTV: Tensor, tokens_BT: Tensor, temperature: float = 1.0) -> Tensor:
    """log π(token_t | tokens_<t) = log softmax(logits_{t−1}/τ)[token_t]: (B, T−1), nats.

    τ is the sampling temperature, for actor and reference alike.
    """
    flat_N = packed_logprobs(logits_BTV.flatten(0, 1), _next_tokens(tokens_BT), temperature)
    return flat_N.view(tokens_BT.shape)[:, :-1]


def token_logprobs_and_entropy(
    logits_BTV: Tensor, tokens_BT: Tensor, temperature: float = 1.0
) -> TokenLogprobs:
    """As `token_logprobs`, with the entropy of the distribution each token came from: (B, T−1)."""
    flat = packed_logprobs_and_entropy(
        logits_BTV.flatten(0, 1), _next_tokens(tokens_BT), temperature
    )
    return TokenLogprobs(*(x_N.view(tokens_BT.shape)[:, :-1] for x_N in flat))


def sum_logprobs(logprobs_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """log π(y|x) = Σ_t log π(y_t | x, y_<t) over True tokens: (B,), nats (DPO, IPO, KTO)."""
    return upcast(logprobs_BT).where(response_mask_BT.bool(), 0.0).sum(-1)


def mean_logprobs(logprobs_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """log π(y|x)/|y|: (B,), nats a token (SimPO, ORPO); a row without True tokens reads 0."""
    return sum_logprobs(logprobs_BT, response_mask_BT) / response_mask_BT.sum(-1).clamp_min(1)


def _log_softmax(logits_NV: Tensor, temperature: float) -> Tensor:
    dtype = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    if temperature != 1.0:  # one copy: the cast and the division share it
        logits_NV = logits_NV.to(dtype, copy=True).div_(temperature)
    return F.log_softmax(logits_NV, dim=-1, dtype=dtype)


def _next_tokens(tokens_BT: Tensor) -> Tensor:
    """Token t+1 at position t, ravelled. Shifting the ids spares a copy of the B·T·V logits; the
    last column, which scores nothing, is dropped by the caller."""
    return tokens_BT.roll(-1, dims=1).reshape(-1)
