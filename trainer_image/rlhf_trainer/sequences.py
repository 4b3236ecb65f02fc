"""Token rows of different lengths through a transformers model without a single pad.

Rows are laid end to end in one packed row, so that projections, norms and MLPs see real tokens
alone. Attention takes the packed row apart again (attention.py): how, travels to it as a keyword of
the model's forward pass.

Answers to one prompt share its tokens: the prompt is laid once, attention reads it in the row of
each answer (for pairs: Wang and Hegde 2024, https://arxiv.org/abs/2410.20305).

A model is packed only if `enable_packing` has seen that it gives the same logits that way; others
(ALiBi, state-space layers, soft-capped attention, models with attention code of their own) get
right-padded rows with an attention mask.

Shapes: B rows, T time, N packed tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from rlhf_trainer.attention import (
    GROUP_FILL,
    Group,
    attention_groups,
    fill,
    rectangle,
    segments_attention,
)
from rlhf_trainer.last_layer import WANTED, hooked_last_layer

ATTENTION: Final = "rlhf_segments"
"""Name of the attention function in transformers' registry."""


class Packed(NamedTuple):
    """Rows laid end to end: what a model is fed."""

    input_ids: Tensor  # (1, N)
    position_ids: Tensor  # (1, N), from 0 in each row
    lengths: tuple[int, ...]  # tokens of each row
    shared: tuple[int, ...]  # how many of them, from its first, are those of the row before
    groups: tuple[Group, ...]

    @property
    def starts(self) -> list[int]:
        """Packed position of the first token that is each row's own."""
        own = (length - shared for length, shared in zip(self.lengths, self.shared, strict=True))
        return [0, *accumulate(own)][:-1]


def pack_rows(
    rows: Sequence[Sequence[int]],
    device: torch.device | str = "cpu",
    shared: Sequence[int] | None = None,
) -> Packed:
    """Lay rows end to end, in the order given: order them by length, and groups have few pads.

    Of row i, the first `shared[i]` tokens are not laid again: row i − 1 begins with them, too.
    """
    lengths = tuple(len(row) for row in rows)
    shared = (0,) * len(rows) if shared is None else tuple(shared)
    own = list(zip(rows, lengths, shared, strict=True))
    tokens = torch.tensor(
        [t for row, _, s in own for t in row[s:]], dtype=torch.long, device=device
    )
    positions = torch.cat([torch.arange(s, n, device=device) for _, n, s in own])
    groups = attention_groups(lengths, shared, device)
    return Packed(tokens[None], positions[None], lengths, shared, groups)


def pack_answers_to(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    device: torch.device | str = "cpu",
) -> tuple[Packed, list[int]]:
    """Prompts with their answers, longest first, a prompt's answers together; and the packed
    position of each prompt's last token, in the order given.

    A prompt is laid once but for that last token, which each answer's first is predicted from: so
    no position is asked for twice. Rows whose lengths differ much share nothing: attention would
    read more pads than the prompt has tokens.
    """
    lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
    runs = _rows_that_share(prompts, lengths)
    order = [i for run in runs for i in run]
    shared = [max(0, len(prompts[i]) - 1) if k else 0 for run in runs for k, i in enumerate(run)]
    packed = pack_rows([[*prompts[i], *answers[i]] for i in order], device, shared)
    last = {
        i: start + len(prompts[i]) - 1 - common
        for i, start, common in zip(order, packed.starts, shared, strict=True)
    }
    return packed, [last[i] for i in range(len(prompts))]


def _rows_that_share(prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[list[int]]:
    """All rows, longest first, in runs with the same prompt that fill their rectangle."""
    runs: dict[tuple[int, ...], list[list[int]]] = {}
    for i in sorted(range(len(prompts)), key=lambda i: -lengths[i]):
        of_prompt = runs.setdefault(tuple(prompts[i]), [])
        if of_prompt and fill([lengths[k] for k in (*of_prompt[-1], i)]) >= GROUP_FILL:
            of_prompt[-1].append(i)
        else:
            of_prompt.append([i])
    every = (run for of_prompt in runs.values() for run in of_prompt)
    return sorted(every, key=lambda run: -lengths[run[0]])


def packed_hidden(
    trunk: nn.Module, packed: Packed, positions_W: Tensor, is_packable: bool
) -> Tensor:
    """The trunk's last hidden states at some packed positions, each of them once: (W, hidden
    size)."""
    inputs, cell_N = model_inputs(packed, is_packable, positions_W)
    hidden_BTH: Tensor = trunk(**inputs).last_hidden_state
    return of_packed(hidden_BTH, cell_N)[positions_W]


def of_packed(output_BTX: Tensor, cell_N: Tensor | None) -> Tensor:
    """A model's output of packed tokens (N, …): `cell_N` as `model_inputs` gave it."""
    return output_BTX[0] if cell_N is None else output_BTX.flatten(0, 1)[cell_N]


def model_inputs(
    packed: Packed, is_packable: bool, wanted_W: Tensor | None = None
) -> tuple[dict[str, Any], Tensor | None]:
    """Keywords of a model's forward pass; and, for a model that takes padded rows, the cell of its
    output (B, T) that each of the N packed tokens is in.

    `wanted_W`: positions, each once, beside which the output may be anything; default all.
    """
    if is_packable:
        # transformers takes a mask of 4 dimensions as it is, where it would build one of (N, N);
        # the attention function below never reads it.
        mask = packed.input_ids.new_ones(1, 1, 1, packed.input_ids.shape[1], dtype=torch.bool)
        inputs = {
            "input_ids": packed.input_ids,
            "position_ids": packed.position_ids,
            "attention_mask": mask,
            "segments": packed.groups,
            "use_cache": False,
        }
        return inputs if wanted_W is None else inputs | {WANTED: wanted_W}, None
    return _padded_inputs(packed)


def enable_packing(model: Any) -> bool:
    """Make a transformers model take packed rows; False, and the model as it was, if it cannot. Its
    last layer then goes on with wanted positions alone, if it can.

    The proof is by trial: three short rows give the same logits packed as one by one, and these
    with the model's own attention.
    """
    before = model.config._attn_implementation
    if not _might_pack(model):
        return False
    try:
        with of_a_trial(model):
            own_NV = _logits_row_by_row(model)
            model.set_attn_implementation(ATTENTION)
            if _packs_exactly(model, own_NV):
                _go_on_with_wanted(model, own_NV)
                return True
    except (ValueError, TypeError, NotImplementedError, RuntimeError, AttributeError):
        pass  # a model with attention or masks of its own: padded rows serve it
    model.set_attn_implementation(before)
    return False


def _padded_inputs(packed: Packed) -> tuple[dict[str, Any], Tensor]:
    device = packed.input_ids.device
    whole = rectangle(packed.lengths, packed.shared, device)
    ids = packed.input_ids[0]
    cell_N = torch.arange(len(ids), device=device) if whole.to_packed is None else whole.to_packed
    ids = ids if whole.to_padded is None else ids[whole.to_padded]
    lengths = torch.tensor(packed.lengths, device=device)
    real_BT = torch.arange(whole.longest, device=device) < lengths[:, None]
    return {
        "input_ids": ids.view(whole.rows, whole.longest),
        "attention_mask": real_BT.long(),
        "use_cache": False,
    }, cell_N


def _might_pack(model: Any) -> bool:
    layers = getattr(model.config, "layer_types", None) or []
    return (
        getattr(model, "_supports_attention_backend", False)
        and not getattr(model, "_is_stateful", False)
        and getattr(model.config, "attn_logit_softcapping", None) is None
        and set(layers) <= {"full_attention", "sliding_attention"}
        and "position_ids" in inspect.signature(model.forward).parameters
    )


@contextmanager
def of_a_trial(model: Any) -> Iterator[None]:
    """Within it a model shows how it computes, not how it rounds.

    Sliding windows are narrower than the trial's rows: some models (PhiMoE) tell their attention of
    them by the mask alone, which packed rows have none of. Each token meets all experts: which of
    two that are nearly alike it would meet, rounding decides, and with it all of its logits.
    """
    changes = [
        (owner, name, value)
        for owner in (model.config, *model.modules())
        for name, value in _trial_settings(vars(owner))
    ]
    before = [(owner, name, vars(owner)[name]) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _trial_settings(own: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Of the attributes of a configuration or module, those that a trial sets."""
    if own.get("sliding_window"):
        yield "sliding_window", 3
    for chosen, there in (("top_k", "num_experts"), ("topk_group", "n_group")):
        if isinstance(own.get(chosen), int) and isinstance(own.get(there), int):
            yield chosen, own[there]


def _trial_rows(model: Any) -> list[list[int]]:
    """Rows of 5, 3 and 3 tokens: a leak between rows, or positions that run on, would show."""
    top = int(model.config.vocab_size)
    return [[(7 * i + 3 * j + 1) % top for j in range(n)] for i, n in enumerate((5, 3, 3))]


@torch.no_grad()
def _logits_row_by_row(model: Any) -> Tensor:
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    rows = [torch.tensor([row], device=device) for row in _trial_rows(model)]
    alone = [_first_output(model(row, use_cache=False))[0] for row in rows]
    model.train(was_training)
    return torch.cat(alone).float()


def _go_on_with_wanted(model: Any, expected_NV: Tensor) -> None:
    hooked = hooked_last_layer(model)
    if hooked is None:
        return
    wanted_W = torch.tensor([1, 4, 7, 10], device=expected_NV.device)
    try:
        fits = _packs_exactly(model, expected_NV, wanted_W)
    except (ValueError, TypeError, NotImplementedError, RuntimeError, AttributeError, IndexError):
        fits = False  # parts of these names that take or give something else
    if not fits:
        hooked.remove()


@torch.no_grad()
def _packs_exactly(model: Any, expected_NV: Tensor, wanted_W: Tensor | None = None) -> bool:
    packed = pack_rows(_trial_rows(model), expected_NV.device)
    inputs, _ = model_inputs(packed, True, wanted_W)
    was_training = model.training
    model.eval()
    together_NV = _first_output(model(**inputs))[0].float()
    model.train(was_training)
    if wanted_W is not None:
        together_NV, expected_NV = together_NV[wanted_W], expected_NV[wanted_W]
    coarse = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
    tolerance = (0.05 if coarse else 1e-4) * max(1.0, float(expected_NV.abs().max()))
    return bool((together_NV - expected_NV).abs().max() <= tolerance)


def _first_output(output: Any) -> Tensor:
    first: Tensor = output[0]
    return first


AttentionInterface.register(ATTENTION, segments_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
