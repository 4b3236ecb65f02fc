"""A causal language model as stages train it: it scores tokens that it is shown.

The head runs on wanted positions alone, and on so many at a time that their logits fit: at a
vocabulary of 152k tokens the logits of a micro-batch would be larger than all else in it.

Shapes: N wanted positions (row by row), C of them at a time, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf_trainer.logprobs import packed_logprobs
from rlhf_trainer.models.language_models import trunk_of
from rlhf_trainer.models.lora import plain_model
from rlhf_trainer.sequences import (
    Packed,
    enable_packing,
    model_inputs,
    of_packed,
    pack_answers_to,
    pack_rows,
    packed_hidden,
)

LOGITS_AT_ONCE: Final = 1 << 26
"""Logits computed at a time: 256 MiB in fp32, and a few times as much in what is made of them."""

Figures = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""(logits (C, V), targets (C,)) -> figures (C,) of each position."""


class TokenBatch(NamedTuple):
    """Rows end to end, and the tokens in them that are scored."""

    packed: Packed
    positions: Tensor  # packed position whose output scores target n
    targets: Tensor  # that token


def token_batch(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    device: torch.device | str,
) -> TokenBatch:
    """Prompts with their responses. The last token of a row, which predicts nothing, is left out.

    Without rows it is one token whose output nobody wants: a rank without work still makes its
    forward and backward pass, which hold collectives under ZeRO-3.
    """
    if not prompts:
        none = torch.empty(0, dtype=torch.long, device=device)
        return TokenBatch(pack_rows([[0]], device), none, none)
    packed, last = pack_answers_to(prompts, [r[:-1] for r in responses], device)
    spans = [torch.arange(at, at + len(r)) for at, r in zip(last, responses, strict=True)]
    targets = torch.tensor([t for r in responses for t in r], dtype=torch.long, device=device)
    return TokenBatch(packed, torch.cat(spans).to(device), targets)


def logprobs_alone(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, ...]:
    """log π of each target, in nats."""
    return (packed_logprobs(logits_CV, targets_C),)


class ScoredLM(nn.Module):
    """A causal language model that gives figures of targets rather than logits."""

    def __init__(self, lm: nn.Module, packs: bool = True) -> None:
        super().__init__()
        self.lm = lm
        self.is_packable = packs and enable_packing(plain_model(lm))
        self.splits = _is_trunk_and_head(plain_model(lm))

    def forward(self, batch: TokenBatch, figures: Figures = logprobs_alone) -> tuple[Tensor, ...]:
        """The figures of all targets, (N,) each."""
        return self.score(*self.read(batch), batch.targets, figures)

    def read(self, batch: TokenBatch) -> tuple[Tensor, Tensor | None]:
        """Last hidden states at the batch's positions (N, H); and their logits (N, V), if the model
        does more to them than its head does."""
        plain = plain_model(self.lm)
        if self.splits:
            trunk, positions = trunk_of(plain), batch.positions
            return packed_hidden(trunk, batch.packed, positions, self.is_packable), None
        inputs, cell_N = model_inputs(batch.packed, self.is_packable, batch.positions)
        with _last_hidden(trunk_of(plain)) as seen:
            if cell_N is None:
                inputs["logits_to_keep"] = batch.positions
                kept_NV: Tensor = plain(**inputs).logits[0]
                return seen[0][0, batch.positions], kept_NV
            logits_BTV: Tensor = plain(**inputs).logits
        hidden_NH, logits_NV = (of_packed(x, cell_N) for x in (seen[0], logits_BTV))
        return hidden_NH[batch.positions], logits_NV[batch.positions]

    def score(
        self, hidden_NH: Tensor, logits_NV: Tensor | None, targets_N: Tensor, figures: Figures
    ) -> tuple[Tensor, ...]:
        """Figures from what `read` gave. Logits of many positions are made anew in the backward
        pass, some at a time."""
        if logits_NV is not None:
            return figures(logits_NV, targets_N)
        plain = plain_model(self.lm)
        head = plain.get_output_embeddings()

        def scored(hidden_CH: Tensor, targets_C: Tensor) -> tuple[Tensor, ...]:
            return figures(head(hidden_CH), targets_C)

        chunks = _chunks(len(targets_N), plain.config.get_text_config().vocab_size, head)
        if chunks <= 1:
            return scored(hidden_NH, targets_N)
        pairs = zip(hidden_NH.tensor_split(chunks), targets_N.tensor_split(chunks), strict=True)
        parts = [
            checkpoint(scored, *p, use_reentrant=False, preserve_rng_state=False) for p in pairs
        ]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def gradient_checkpointing_enable(self, options: dict[str, Any] | None = None) -> None:
        """Recompute the trunk's activations in the backward pass."""
        plain_model(self.lm).gradient_checkpointing_enable(options)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Within it the model is what it was before its LoRA adapter."""
        with self.lm.disable_adapter():  # type: ignore[operator]
            yield


def _chunks(positions: int, vocabulary: int, head: nn.Module) -> int:
    """Parts in which the head runs. Under ZeRO-3 each gathers its weight, on all ranks at once: all
    of them run as many as the one that has most."""
    chunks = -(-positions * vocabulary // LOGITS_AT_ONCE)
    weight = next(head.parameters())
    if not hasattr(weight, "ds_id") or dist.get_world_size() == 1:
        return chunks
    most = torch.tensor(chunks, device=weight.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


@torch.no_grad()
def _is_trunk_and_head(model: Any) -> bool:
    """By trial: whether its logits are its head's output on its trunk's last hidden states."""
    ids = torch.arange(3, device=next(model.parameters()).device)[None]
    was_training = model.training
    model.eval()
    try:
        hidden_BTH = trunk_of(model)(input_ids=ids, use_cache=False).last_hidden_state
        logits_BTV = model(input_ids=ids, use_cache=False).logits
        return torch.equal(model.get_output_embeddings()(hidden_BTH), logits_BTV)
    except (AttributeError, TypeError, ValueError, NotImplementedError, RuntimeError):
        return False
    finally:
        model.train(was_training)


@contextmanager
def _last_hidden(trunk: nn.Module) -> Iterator[list[Tensor]]:
    """Catches the trunk's last hidden state on its way to the head."""
    seen: list[Tensor] = []
    hook = trunk.register_forward_hook(lambda *call: seen.append(call[2].last_hidden_state))
    try:
        yield seen
    finally:
        hook.remove()
