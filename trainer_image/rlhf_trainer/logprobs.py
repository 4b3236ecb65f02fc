"""Log-probabilities and entropy of the tokens that a model was shown.

Logits and targets come aligned: the logits (and values) at position t−1 of a row score its token t.

Numerics: fp32 whatever the input (float64 stays float64).

Shapes: N tokens of all rows, V vocabulary.
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
    """log softmax(z/τ)[y] of N pairs of logits and target: (N,), nats."""
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


def _log_softmax(logits_NV: Tensor, temperature: float) -> Tensor:
    dtype = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    if temperature != 1.0:  # one copy: the cast and the division share it
        logits_NV = logits_NV.to(dtype, copy=True).div_(temperature)
    return F.log_softmax(logits_NV, dim=-1, dtype=dtype)
