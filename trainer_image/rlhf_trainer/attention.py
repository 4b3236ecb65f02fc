"""Attention within rows that are laid end to end, without a mask of all of them against all.

Packed tokens are taken apart into groups of neighbouring rows. A group is a rectangle of
right-padded rows of about equal length, where causal attention needs no mask: a pad is to the right
of all that is real. Answers to one prompt have it among the keys of each row; its queries, on a CPU
where that saves enough, are in the first row alone.

Shapes: B rows, T time, S ≤ T queries of a row, its last; N packed tokens, H query heads, K key
heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import (
    repeat_kv,
    sdpa_attention_forward,
    use_gqa_in_sdpa,
)

GROUP_FILL: Final = 0.75
"""A group is closed before its rows fill less than this of its padded rectangle."""
SHORT: Final = 256
"""Rows up to so many tokens: torch's flash kernel for CPUs is slower there than plain products, its
backward pass in bf16 four times."""
WORTH_A_PART: Final = 1 << 15
"""Scores of a head that are spared where all rows but the first leave a prompt's queries out: for
half as many, one more call of everything costs more than they do."""


class Rectangle(NamedTuple):
    """Rows of tokens, right-padded to the longest."""

    rows: int
    longest: int
    to_padded: Tensor | None  # (rows·longest,) index into a group's tokens; None: they are it
    to_packed: Tensor | None  # (tokens,) each row's own in the rectangle; None: all cells


class Part(NamedTuple):
    """Rows that attention computes at once."""

    queries: Rectangle
    keys: Rectangle


class Group(NamedTuple):
    """Neighbouring rows. Their parts have its tokens as queries, each once, in order."""

    tokens: int  # without pads, and what rows share once
    parts: tuple[Part, ...]


def attention_groups(
    lengths: Sequence[int], shared: Sequence[int], device: torch.device | str
) -> tuple[Group, ...]:
    """Groups of rows of these lengths; row i begins with `shared[i]` tokens of row i − 1, which are
    not laid again."""
    groups, first = [], 0
    for start, end in _runs(shared):
        # GPUs' fastest kernels know no queries that begin in the middle of their row.
        on_cpu = torch.device(device).type == "cpu"
        alone = on_cpu and _is_worth_a_part(lengths[start:end], shared[start + 1 : end])
        if first < start and (alone or fill(lengths[first : start + 1]) < GROUP_FILL):
            groups.append(_one_part(lengths[first:start], shared[first:start], device))
            first = start
        if alone:
            groups.append(_two_parts(lengths[start:end], shared[start:end], device))
            first = end
    if first < len(lengths):
        groups.append(_one_part(lengths[first:], shared[first:], device))
    return tuple(groups)


def fill(lengths: Sequence[int]) -> float:
    """The share of a padded rectangle that is no pad."""
    return sum(lengths) / (len(lengths) * max(lengths))


def rectangle(
    lengths: Sequence[int], shared: Sequence[int], device: torch.device | str
) -> Rectangle:
    """All rows whole, each in a row of its own."""
    if not any(shared) and len(set(lengths)) <= 1:
        return Rectangle(len(lengths), lengths[0], None, None)
    return _padded(_tokens_of_rows(lengths, shared), shared, device)


def segments_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: tuple[Group, ...] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention interface: query (1, H, N, D), key and value (1, K, N, D).

    Returns (1, N, H, D). Without `segments` (generation with a cache) it is transformers' own, but
    for one token a row on a CPU, where that would copy all keys and values for each query head.
    NotImplementedError for what would be left out: sinks (gpt-oss), soft caps.
    """
    if kwargs.get("s_aux") is not None or kwargs.get("softcap") is not None:
        raise NotImplementedError("attention with sinks or a soft cap")
    if segments is None:
        if query.device.type == "cpu" and query.shape[2] == 1 and attention_mask is not None:
            out_BHqD = F.scaled_dot_product_attention(
                query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
            )
            return out_BHqD.transpose(1, 2), None
        seen: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return seen
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Split rather than sliced: a slice's gradient is as large as what it was taken from.
    sizes = [group.tokens for group in segments]
    qs, ks, vs = (torch.split(x[0].transpose(0, 1), sizes) for x in (query, key, value))
    outs = [
        _attention_of(part, q, k, v, scale, sliding_window)
        for group, q, k, v in zip(segments, qs, ks, vs, strict=True)
        for part in group.parts
    ]
    return (outs[0] if len(outs) == 1 else torch.cat(outs))[None], None


def _attention_of(
    part: Part, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, scale: float, window: int | None
) -> Tensor:
    """Causal attention within each row of one part: (its tokens, H, D)."""
    q_BHSD = _in_rows(part.queries, q_NHD)
    k_BKTD, v_BKTD = (_in_rows(part.keys, x) for x in (k_NKD, v_NKD))
    out_BSHD = causal_attention(q_BHSD, k_BKTD, v_BKTD, scale, window).transpose(1, 2)
    out_NHD = out_BSHD.reshape(-1, *out_BSHD.shape[2:])
    cells = part.queries.to_packed
    return out_NHD if cells is None else out_NHD.index_select(0, cells)


def _in_rows(cells: Rectangle, x_NHD: Tensor) -> Tensor:
    if cells.to_padded is not None:
        x_NHD = x_NHD.index_select(0, cells.to_padded)
    return x_NHD.view(cells.rows, cells.longest, *x_NHD.shape[1:]).transpose(1, 2)


def causal_attention(
    q_BHSD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scale: float, window: int | None = None
) -> Tensor:
    """softmax(q kᵀ·scale) v, causal, each key head shared by H/K query heads: (B, H, S, D). The
    queries are those of a row's last tokens."""
    queries, time = q_BHSD.shape[2], k_BKTD.shape[2]
    if q_BHSD.device.type == "cpu" and time <= SHORT:
        return _short_attention(q_BHSD, k_BKTD, v_BKTD, scale, window)
    sees_all = window is None or window >= time
    is_square = sees_all and queries == time
    near_ST = None if is_square else _near(queries, time, window, q_BHSD.device)
    shared = q_BHSD.shape[1] // k_BKTD.shape[1]
    if q_BHSD.device.type != "cpu" and not use_gqa_in_sdpa(near_ST, k_BKTD, v_BKTD):
        # GPUs' kernels know no shared heads beside a mask: torch would write all scores out.
        k_BKTD, v_BKTD = repeat_kv(k_BKTD, shared), repeat_kv(v_BKTD, shared)
        shared = 1
    return F.scaled_dot_product_attention(
        q_BHSD,
        k_BKTD,
        v_BKTD,
        attn_mask=near_ST,
        is_causal=is_square,
        scale=scale,
        enable_gqa=shared > 1,
    )


def _short_attention(
    q_BHSD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scale: float, window: int | None
) -> Tensor:
    """`causal_attention` as three plain operations: query heads that share a key head are more
    rows of one product, and all scores of a head lie in a cache.
    """
    batch, heads, queries, width = q_BHSD.shape
    keys, time = k_BKTD.shape[1:3]
    near_ST = _near(queries, time, window, q_BHSD.device)
    bias_ST = torch.zeros_like(near_ST, dtype=q_BHSD.dtype).masked_fill_(~near_ST, -torch.inf)
    scores = torch.baddbmm(
        bias_ST.repeat(heads // keys, 1),
        q_BHSD.reshape(batch * keys, -1, width),
        k_BKTD.reshape(batch * keys, time, width).transpose(1, 2),
        alpha=scale,
    )
    out = scores.softmax(-1) @ v_BKTD.reshape(batch * keys, time, width)
    return out.view(batch, heads, queries, width)


def _near(queries: int, time: int, window: int | None, device: torch.device) -> Tensor:
    """(S, T): whether the query of the row, one of the last, sees the key of the column."""
    position = torch.arange(time, device=device)
    distance_ST = position[time - queries :, None] - position
    return (distance_ST >= 0) & (distance_ST < (window or time))


def _runs(shared: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last-but-one of rows of which each but the first shares tokens with the one
    before."""
    starts = [i for i, common in enumerate(shared) if not common]
    return zip(starts, [*starts[1:], len(shared)], strict=True)


def _is_worth_a_part(lengths: Sequence[int], shared: Sequence[int]) -> bool:
    """Whether rows after the first are computed without what they share with it, one length."""
    return len(set(shared)) == 1 and sum(shared) * max(lengths) >= WORTH_A_PART


def _one_part(lengths: Sequence[int], shared: Sequence[int], device: torch.device | str) -> Group:
    whole = rectangle(lengths, shared, device)
    return Group(sum(lengths) - sum(shared), (Part(whole, whole),))


def _two_parts(lengths: Sequence[int], shared: Sequence[int], device: torch.device | str) -> Group:
    """The first row; all others, whose queries are their own tokens."""
    first, *others = _tokens_of_rows(lengths, shared)
    common = shared[1]
    alone = _padded([first], [0], device)
    queries = _padded([row[common:] for row in others], [0] * len(others), device)
    keys = _padded(others, shared[1:], device)
    return Group(sum(lengths) - sum(shared), (Part(alone, alone), Part(queries, keys)))


def _tokens_of_rows(lengths: Sequence[int], shared: Sequence[int]) -> list[Tensor]:
    """Where each row's tokens are among those that are laid."""
    rows: list[Tensor] = []
    laid = 0
    for length, common in zip(lengths, shared, strict=True):
        own = torch.arange(laid, laid + length - common)
        rows.append(torch.cat([rows[-1][:common], own]) if common else own)
        laid += len(own)
    return rows


def _padded(rows: Sequence[Tensor], shared: Sequence[int], device: torch.device | str) -> Rectangle:
    longest = max(map(len, rows))
    # A pad reads its row's last token: any finite value will do, nothing real attends to it.
    padded = [torch.cat([row, row[-1:].expand(longest - len(row))]) for row in rows]
    cells = [
        number * longest + torch.arange(common, len(row))
        for number, (row, common) in enumerate(zip(rows, shared, strict=True))
    ]
    to_padded, to_packed = torch.cat(padded).to(device), torch.cat(cells).to(device)
    return Rectangle(len(rows), longest, to_padded, to_packed)
