"""Log-probabilities and entropy of the tokens that a model was shown.

Alignment, everywhere in this package: the logits (and values) at position t−1 score token t, so a
row of T tokens has T−1 log-probs and column j of the result belongs to token j+1. Masks that go
with log-probs have T−1 columns as well: `response_mask_BT[:, 1:]`.

Numerics: fp32 whatever the input (float64 stays float64).

Shapes: B batch, T time, N packed tokens (any B and T ravelled), V vocabulary, H hidden size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

DEFAULT_CHUNK_TOKENS = 1024


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


def chunked_packed_logprobs(
    hidden_NH: Tensor,
    head_weight_VH: Tensor,
    targets_N: Tensor,
    temperature: float = 1.0,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
) -> Tensor:
    """`packed_logprobs(hidden @ head_weightᵀ, targets)` without the N·V logits: (N,), nats.

    At most `chunk_tokens`·V logits live at once, in forward and (recomputed) in backward; the
    gradient of the head is summed in fp32. For a head with a bias or soft-capped logits use
    `packed_logprobs`. Under ZeRO-3 the weight must be gathered around forward and backward.
    """
    return _chunked(hidden_NH, head_weight_VH, targets_N, temperature, chunk_tokens, False).logprobs


def chunked_packed_logprobs_and_entropy(
    hidden_NH: Tensor,
    head_weight_VH: Tensor,
    targets_N: Tensor,
    temperature: float = 1.0,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
) -> TokenLogprobs:
    """As `chunked_packed_logprobs`, with the entropy: (N,) each. Both carry gradients."""
    return _chunked(hidden_NH, head_weight_VH, targets_N, temperature, chunk_tokens, True)


def chunked_token_logprobs(
    hidden_BTH: Tensor,
    head_weight_VH: Tensor,
    tokens_BT: Tensor,
    temperature: float = 1.0,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
    response_mask: Tensor | None = None,
) -> Tensor:
    """`token_logprobs` from hidden states, without the B·T·V logits: (B, T−1), nats.

    With `response_mask` (B, T−1) the head runs on its True tokens only; the others read 0.
    """
    mask = _mask_of_scored(tokens_BT) if response_mask is None else response_mask.bool()
    logprobs_N = chunked_packed_logprobs(
        hidden_BTH[:, :-1][mask], head_weight_VH, tokens_BT[:, 1:][mask], temperature, chunk_tokens
    )
    return _unpack(logprobs_N, mask)


def chunked_token_logprobs_and_entropy(
    hidden_BTH: Tensor,
    head_weight_VH: Tensor,
    tokens_BT: Tensor,
    temperature: float = 1.0,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
    response_mask: Tensor | None = None,
) -> TokenLogprobs:
    """As `chunked_token_logprobs`, with the entropy: (B, T−1) each."""
    mask = _mask_of_scored(tokens_BT) if response_mask is None else response_mask.bool()
    packed = chunked_packed_logprobs_and_entropy(
        hidden_BTH[:, :-1][mask], head_weight_VH, tokens_BT[:, 1:][mask], temperature, chunk_tokens
    )
    return TokenLogprobs(*(_unpack(x_N, mask) for x_N in packed))


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


def _mask_of_scored(tokens_BT: Tensor) -> Tensor:
    return torch.ones_like(tokens_BT[:, 1:], dtype=torch.bool)


def _unpack(x_N: Tensor, mask_BT: Tensor) -> Tensor:
    return x_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, x_N)


def _chunked(
    hidden_NH: Tensor,
    head_weight_VH: Tensor,
    targets_N: Tensor,
    temperature: float,
    chunk_tokens: int,
    with_entropy: bool,
) -> TokenLogprobs:
    weight_VH = head_weight_VH.to(hidden_NH.dtype)
    apply = cast(Callable[..., tuple[Tensor, Tensor]], _ChunkedLogprobs.apply)
    return TokenLogprobs(
        *apply(hidden_NH, weight_VH, targets_N, temperature, chunk_tokens, with_entropy)
    )


def _chunk_logits(hidden_CH: Tensor, weight_VH: Tensor, temperature: float) -> Tensor:
    """z/τ of one chunk, fp32 and ours to overwrite. The product stays in the model's dtype, so that
    the numbers equal those of the model's own head; autocast must not change it half-way."""
    with torch.autocast(hidden_CH.device.type, enabled=False):
        logits_CV = upcast(hidden_CH @ weight_VH.t())
    return logits_CV if temperature == 1.0 else logits_CV.div_(temperature)


class _ChunkedLogprobs(torch.autograd.Function):
    """Per token, with z = W h/τ, p = softmax(z), ℓ = log p_y, H = −Σ p log p:

    dℓ/dz = 1_y − p        dH/dz = −p (log p + H)
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        targets_N: Tensor,
        temperature: float,
        chunk_tokens: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if hidden_NH.dtype == torch.float64 else torch.float32
        logprobs_N, lse_N, entropy_N = hidden_NH.new_zeros(3, len(targets_N), dtype=dtype).unbind()
        for start in range(0, len(targets_N), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            z_CV = _chunk_logits(hidden_NH[chunk], weight_VH, temperature)
            lse_N[chunk] = z_CV.logsumexp(-1)
            logp_CV = z_CV.sub_(lse_N[chunk, None])
            logprobs_N[chunk] = logp_CV.gather(-1, targets_N[chunk, None]).squeeze(-1)
            if with_entropy:
                entropy_N[chunk] = -logp_CV.exp().mul_(logp_CV).sum(-1)
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N, lse_N, entropy_N)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        ctx.set_materialize_grads(False)  # an entropy that is only reported costs no backward
        return logprobs_N.clone(), entropy_N.clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs_N: Tensor | None, grad_entropy_N: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden_NH, weight_VH, targets_N, lse_N, entropy_N = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden_NH = torch.zeros_like(hidden_NH) if needs_hidden else None
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=lse_N.dtype) if needs_weight else None
        for start in range(0, len(targets_N), ctx.chunk_tokens):
            chunk = slice(start, start + ctx.chunk_tokens)
            z_CV = _chunk_logits(hidden_NH[chunk], weight_VH, ctx.temperature)
            logp_CV = z_CV.sub_(lse_N[chunk, None])
            grad_z_CV = _grad_logits(
                logp_CV,
                targets_N[chunk],
                entropy_N[chunk],
                None if grad_logprobs_N is None else grad_logprobs_N[chunk],
                None if grad_entropy_N is None else grad_entropy_N[chunk],
            )
            grad_z_CV = grad_z_CV.div_(ctx.temperature).to(hidden_NH.dtype)
            if grad_hidden_NH is not None:
                grad_hidden_NH[chunk] = grad_z_CV @ weight_VH
            if grad_weight_VH is not None:
                grad_weight_VH += grad_z_CV.t() @ hidden_NH[chunk]
        if grad_weight_VH is not None:
            grad_weight_VH = grad_weight_VH.to(weight_VH.dtype)
        return grad_hidden_NH, grad_weight_VH, None, None, None, None


def _grad_logits(
    logp_CV: Tensor,
    targets_C: Tensor,
    entropy_C: Tensor,
    grad_logprobs_C: Tensor | None,
    grad_entropy_C: Tensor | None,
) -> Tensor:
    """g_ℓ·(1_y − p) − g_H·p·(log p + H), in as few V-wide passes as it takes; eats `logp_CV`."""
    g_logprobs_C = torch.zeros_like(entropy_C) if grad_logprobs_C is None else grad_logprobs_C
    if grad_entropy_C is None:
        grad_CV = logp_CV.exp_().mul_(-g_logprobs_C[:, None])
    else:
        p_CV = logp_CV.exp()
        scale_CV = logp_CV.add_(entropy_C[:, None]).mul_(-grad_entropy_C[:, None])
        grad_CV = scale_CV.sub_(g_logprobs_C[:, None]).mul_(p_CV)
    return grad_CV.scatter_add_(-1, targets_C[:, None], g_logprobs_C[:, None])
