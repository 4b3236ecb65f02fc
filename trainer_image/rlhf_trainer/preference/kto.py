"""Kahneman-Tversky optimization: single answers that were called good or bad.

    r = log π(y|x) − log π_ref(y|x)
    loss = λ_D·(1 − σ(β(r − z₀))) of a good answer,  λ_U·(1 − σ(β(z₀ − r))) of a bad one

z₀, an estimate of KL(π‖π_ref), is taken over the whole global batch before its first micro-batch
(Ethayarajh et al. 2024, sec. 4): each prompt with the answer to the next other one of the data set.
`sftCoef` adds the mean of −log π(y|x)/|y| over the global batch's good answers.

Shapes: B answers of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rlhf_api.stages import DPOStage
from torch import Tensor

from rlhf_trainer.data.answer_rows import AnswerRow, AnswerRows, sums_of_rows
from rlhf_trainer.data.encode import Answer, EncodedLabelled
from rlhf_trainer.data.stage_rows import labelled_rows, write_left_out
from rlhf_trainer.engine import Engine
from rlhf_trainer.losses import kto_kl_baseline, kto_loss
from rlhf_trainer.preference.answer_task import AnswerTask, answer_logprobs, answer_rows
from rlhf_trainer.session import Session
from rlhf_trainer.task import Contribution

FIGURES = ("train/accuracy", "dpo/chosen_reward", "dpo/rejected_reward", "dpo/kl_baseline")
"""Share of answers whose reward lies on the right side of z₀; mean implicit reward of the good and
of the bad answers; z₀."""


class Judged(NamedTuple):
    """A prompt with its answer, and with an answer to another prompt."""

    id: str
    rows: tuple[AnswerRow, AnswerRow]
    good: bool
    reference: tuple[float, ...] = ()  # log π_ref of both, where it is stored


class Whole:
    """What is to be known of one global batch."""

    def __init__(self, examples: Sequence[Judged], parts: Sequence[Sequence[Judged]]) -> None:
        self.answers, self.good = len(examples), sum(example.good for example in examples)
        self.parts = parts  # examples of this rank's micro-batches
        self.z0: Tensor | None = None  # computed when the first micro-batch asks for it


class MicroBatch(NamedTuple):
    """Answers with their labels."""

    rows: AnswerRows  # without the mismatched answers
    good_B: Tensor
    examples: tuple[Judged, ...]
    whole: Whole


class KtoTask(AnswerTask[Judged, MicroBatch, Whole]):
    """What KTO tells the loop of supervised stages."""

    def __init__(self, *common: Any) -> None:
        *rest, self._reference = common
        super().__init__(*rest)

    @staticmethod
    def examples(session: Session, config: DPOStage) -> tuple[list[Judged], list[Judged]]:
        """Training and held-out examples."""
        rows = session.rows(labelled_rows(config))
        if session.ranks.is_main:
            write_left_out(Path(session.run.output), rows)
        longest = config.max_length
        train, heldout = list(rows.train), list(rows.heldout)  # each is looked at with others
        return _mismatched(train, longest), _mismatched(heldout, longest, train)

    def of_whole(self, whole: Sequence[Judged], parts: Sequence[Sequence[Judged]]) -> Whole:
        """All micro-batches of a step share one z₀."""
        return Whole(whole, parts)

    def laid(self, examples: Sequence[Judged], of_whole: Whole) -> MicroBatch:
        """The answers end to end."""
        good = [example.good for example in examples]
        good_B = torch.tensor(good, device=self.session.ranks.device)
        rows = answer_rows(self.session, _only(examples, 0))
        return MicroBatch(rows, good_B, tuple(examples), of_whole)

    def contribution(self, engine: Engine, micro_batch: MicroBatch) -> Contribution:
        """Σ over answers of the loss, over all answers of the global batch."""
        config, whole = self.settings, micro_batch.whole
        assert isinstance(config, DPOStage)
        z0 = self._baseline(engine, whole)
        logprobs_M = answer_logprobs(engine, micro_batch.rows)
        reference_B = self._of_reference(micro_batch.rows, micro_batch.examples, 0)  # on all ranks
        if not micro_batch.examples:
            zero = logprobs_M.sum()
            return Contribution(zero, dict.fromkeys(FIGURES, zero))
        sums_B = sums_of_rows(logprobs_M, micro_batch.rows.counts)
        weights = config.desirable_weight, config.undesirable_weight
        good_B = micro_batch.good_B
        found = kto_loss(sums_B, reference_B, good_B, z0, config.beta, *weights)
        right_B = (found.rewards > config.beta * z0) == good_B
        good, bad = max(whole.good, 1), max(whole.answers - whole.good, 1)
        values = (
            right_B.sum() / whole.answers,
            found.rewards.where(good_B, 0.0).sum() / good,
            found.rewards.where(~good_B, 0.0).sum() / bad,
            z0 * (len(micro_batch.examples) / whole.answers),
        )
        loss = found.loss.sum() / whole.answers
        if config.sft_coef:
            means_B = sums_B / sums_B.new_tensor(micro_batch.rows.counts)
            loss = loss - config.sft_coef * means_B.where(good_B, 0.0).sum() / good
        return Contribution(loss, dict(zip(FIGURES, values, strict=True)))

    @torch.no_grad()
    def _baseline(self, engine: Engine, whole: Whole) -> Tensor:
        """z₀ over all ranks; a collective at the first call."""
        if whole.z0 is None:
            policy, reference = [], []
            for part in whole.parts:
                rows = answer_rows(self.session, _only(part, 1))
                logprobs_M = answer_logprobs(engine, rows)
                reference_B = self._of_reference(rows, part, 1)
                if part:
                    policy.append(sums_of_rows(logprobs_M, rows.counts))
                    reference.append(reference_B)
            nothing = [torch.zeros(0, device=self.session.ranks.device)]
            sums = torch.cat(policy or nothing), torch.cat(reference or nothing)
            whole.z0 = kto_kl_baseline(*sums, self.session.ranks.sum)
        return whole.z0

    def _of_reference(self, rows: AnswerRows, examples: Sequence[Judged], which: int) -> Tensor:
        stored = [example.reference[which : which + 1] for example in examples]
        found: Tensor = self._reference(rows, stored)
        return found


class _Only(NamedTuple):
    """An example with some of its rows."""

    id: str
    rows: Sequence[AnswerRow]


def _only(examples: Sequence[Judged], which: int) -> list[_Only]:
    return [_Only(example.id, example.rows[which : which + 1]) for example in examples]


def _mismatched(
    rows: Sequence[EncodedLabelled], max_length: int, further: Sequence[EncodedLabelled] = ()
) -> list[Judged]:
    """Each row with the answer of another prompt, cut to fit. Where the rows have but one prompt,
    `further` rows have others, or else the next answer to it serves: with its own, a row would be
    its own baseline.
    """
    next_prompts = _next_prompts(rows)
    apart: Sequence[EncodedLabelled] = []
    if None in next_prompts:
        apart = [row for row in further if row.prompt != rows[0].prompt] or further
    judged = []
    for index, (row, following) in enumerate(zip(rows, next_prompts, strict=True)):
        if following is not None:
            other = rows[following]
        else:
            other = apart[index % len(apart)] if apart else rows[(index + 1) % len(rows)]
        room = max(1, max_length - len(row.prompt))
        answer = other.answer  # itself where it fits: a rank holds those of all rows
        if len(answer.tokens) > room:
            answer = Answer(answer.tokens[:room], answer.mask[:room])
        both = (AnswerRow(row.prompt, row.answer), AnswerRow(row.prompt, answer))
        judged.append(Judged(row.id, both, row.good))
    return judged


def _next_prompts(rows: Sequence[EncodedLabelled]) -> list[int | None]:
    """Of each row the next one, around the end, that has another prompt; None where none has."""
    found: list[int | None] = [None] * len(rows)
    following = None
    for index in reversed(range(2 * len(rows) - 1)):  # from the end, twice, so that ends meet
        here, after = index % len(rows), (index + 1) % len(rows)
        if rows[after].prompt != rows[here].prompt:
            following = after
        found[here] = following
    return found
