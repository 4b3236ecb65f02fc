"""What stages have in common that compare answers: reward model, DPO and its relatives.

An example is a prompt with its answers, which are never parted: they go through the model in one
micro-batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from rlhf_api.stages.common import Supervised
from torch import Tensor

from rlhf_trainer.data.answer_rows import AnswerRow, AnswerRows, pack_answers, padded_cells
from rlhf_trainer.data.batches import global_batch
from rlhf_trainer.data.encode import Answer
from rlhf_trainer.engine import Engine
from rlhf_trainer.scored_lm import TokenBatch
from rlhf_trainer.session import Session
from rlhf_trainer.supervised import Contribution, StepBatch, mean_over_ranks, shares


class Example(Protocol):
    """A prompt with its answers."""

    @property
    def id(self) -> str:
        """``file:line``."""

    @property
    def rows(self) -> Sequence[AnswerRow]:
        """The prompt with each of the answers."""


class LaidOut(Protocol):
    """A micro-batch."""

    @property
    def rows(self) -> AnswerRows:
        """All answers of its examples."""


Split = Literal["train", "heldout"]
E = TypeVar("E", bound=Example)
M = TypeVar("M", bound=LaidOut)


class AnswerTask(ABC, Generic[E, M]):
    """Which examples are in a step and how they are shared out; a stage adds loss and figures."""

    better: str = "eval/loss"
    higher_is_better: bool = False
    evaluated: ClassVar[Mapping[str, str]] = {"train/accuracy": "eval/accuracy"}
    """Figures of a contribution that are reported of held-out examples, and their names there."""

    def __init__(
        self,
        session: Session,
        config: Supervised,
        train: Sequence[E],
        heldout: Sequence[E],
        total_steps: int,
        is_packable: bool,
    ) -> None:
        self.session, self.settings = session, config
        self.train, self.heldout = train, heldout
        self.total_steps, self.is_packable = total_steps, is_packable
        self._lengths = {"train": tokens_of(train), "heldout": tokens_of(heldout)}

    @abstractmethod
    def laid(self, examples: Sequence[E], in_all: Sequence[E]) -> M:
        """A micro-batch of these examples, of the global batch `in_all`. There may be none; then
        `answer_rows` gives a row that does not count."""

    @abstractmethod
    def contribution(self, engine: Engine, micro_batch: M) -> Contribution:
        """Loss and figures of a micro-batch, each a share of the global batch's."""

    def batch(self, step: int) -> StepBatch[M]:
        """This rank's examples of a step."""
        seed = self.session.run.seed
        size = self.settings.global_batch_size
        chosen = global_batch(len(self.train), size, seed, step)
        mine = list(self.micro_batches("train", chosen))
        lengths = [micro_batch.rows.packed.lengths for micro_batch in mine]
        tokens = sum(map(sum, lengths))
        cells = tokens if self.is_packable else sum(map(padded_cells, lengths))
        return StepBatch(mine, [self.train[i].id for i in chosen], tokens, cells)

    @torch.no_grad()
    def evaluate(self, engine: Engine) -> dict[str, float]:
        """Loss and figures on the held-out examples."""
        if not self.heldout:
            return {}
        engine.module.eval()
        parts = []
        for micro_batch in self.micro_batches("heldout", range(len(self.heldout))):
            loss, figures = self.contribution(engine, micro_batch)
            named = {name: figures[figure] for figure, name in self.evaluated.items()}
            parts.append({"eval/loss": loss, **named})
        return mean_over_ranks(self.session, parts, list(parts[0]))

    def micro_batches(self, split: Split, chosen: Sequence[int]) -> Iterable[M]:
        """This rank's micro-batches of the chosen examples; on all ranks equally many. Each is laid
        out as it is asked for: held-out examples may be many, and need not be there at once."""
        in_all = self.chosen(split, chosen)
        return (self.laid(part, in_all) for part in self.parts(split, chosen))

    def parts(self, split: Split, chosen: Sequence[int]) -> list[list[E]]:
        """The examples of each of this rank's micro-batches."""
        lengths, ranks = self._lengths[split], self.session.ranks
        found = shares(chosen, lengths, self.settings, self.is_packable, ranks)
        return [self.chosen(split, part) for part in found]

    def chosen(self, split: Split, indices: Sequence[int]) -> list[E]:
        """Examples by their number."""
        examples = self.train if split == "train" else self.heldout
        return [examples[i] for i in indices]


def answer_rows(session: Session, examples: Sequence[Example]) -> AnswerRows:
    """All answers laid end to end; on a rank without examples, a token that counts nowhere."""
    rows = [row for example in examples for row in example.rows]
    if not rows:
        rows = [AnswerRow([], Answer([int(session.tokenizer.eos_token_id)], [False]))]
    return pack_answers(rows, session.ranks.device)


def tokens_of(examples: Sequence[Example]) -> list[int]:
    """Tokens of each example with all its answers."""
    return [sum(row.length for row in example.rows) for example in examples]


def answer_logprobs(model: Callable[..., Any], rows: AnswerRows) -> Tensor:
    """log π of each answer token: (M,), nats. `model` is a ScoredLM, or the engine of one."""
    logprobs_M: Tensor = model(TokenBatch(rows.packed, rows.before_M, rows.targets_M))[0]
    return logprobs_M
