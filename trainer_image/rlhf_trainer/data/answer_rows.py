"""Prompts with their answers, laid end to end for one pass through a model.

Shapes: R rows (a prompt with one answer), N packed tokens, M answer tokens of all rows, Q queries,
K answers of the query that has most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_trainer.data.encode import Answer
from rlhf_trainer.sequences import Packed, pack_answers_to


class AnswerRow(NamedTuple):
    """A prompt and one answer to it."""

    prompt: Sequence[int]
    answer: Answer

    @property
    def length(self) -> int:
        """Tokens of both."""
        return len(self.prompt) + len(self.answer.tokens)


class AnswerRows(NamedTuple):
    """Rows in the order they were given, whatever their order in the packed sequence."""

    packed: Packed
    last_R: Tensor  # packed position of each row's last token
    targets_M: Tensor  # answer tokens that count
    before_M: Tensor  # packed position of the token before each of them: its logits score it
    counts: tuple[int, ...]  # answer tokens that count, of each row


def pack_answers(rows: Sequence[AnswerRow], device: torch.device) -> AnswerRows:
    """Lay rows end to end, longest first, a prompt once for all of its answers."""
    prompts, answers = [row.prompt for row in rows], [row.answer for row in rows]
    packed, ends = pack_answers_to(prompts, [answer.tokens for answer in answers], device)
    counted, last, counts = [], [], []
    for end, answer in zip(ends, answers, strict=True):
        positions = [end + 1 + k for k, counts_in in enumerate(answer.mask) if counts_in]
        counted += positions
        counts.append(len(positions))
        last.append(end + len(answer.tokens))
    at_M = torch.tensor(counted, dtype=torch.long, device=device)
    return AnswerRows(
        packed=packed,
        last_R=torch.tensor(last, dtype=torch.long, device=device),
        targets_M=packed.input_ids[0, at_M],
        before_M=at_M - 1,
        counts=tuple(counts),
    )


def sums_of_rows(values_M: Tensor, counts: Sequence[int]) -> Tensor:
    """Σ over each row's answer tokens: (R,). By slices: index_add on GPUs has no fixed order."""
    return torch.stack([part.sum() for part in torch.split(values_M, list(counts))])


def by_query(values_R: Tensor, answers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Values of rows as (Q, K), padded with 0; and which of them are there. `answers[q]` are the
    answers of query q, whose rows follow each other."""
    parts = list(torch.split(values_R, list(answers)))
    values_QK = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    index_K = torch.arange(values_QK.shape[1], device=values_R.device)
    return values_QK, index_K < torch.tensor(answers, device=values_R.device)[:, None]


def padded_cells(lengths: Sequence[int]) -> int:
    """Cells of a rectangle that holds rows of these lengths."""
    return len(lengths) * max(lengths, default=0)
