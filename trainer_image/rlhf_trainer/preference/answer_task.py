"""What stages have in common that compare answers: reward model, DPO and its relatives.

An example is a prompt with its answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from rlhf_trainer.data.answer_rows import AnswerRow, AnswerRows, pack_answers
from rlhf_trainer.data.encode import Answer
from rlhf_trainer.models.scored_lm import TokenBatch
from rlhf_trainer.session import Session
from rlhf_trainer.task import LaidOut, Task, W


class Example(Protocol):
    """A prompt with its answers."""

    @property
    def id(self) -> str:
        """``file:line``."""

    @property
    def rows(self) -> Sequence[AnswerRow]:
        """The prompt with each of the answers."""


E = TypeVar("E", bound=Example)
M = TypeVar("M", bound=LaidOut)


class AnswerTask(Task[E, M, W]):
    """A task whose examples are prompts with answers; a stage adds loss and figures."""

    def lengths_of(self, examples: Sequence[E]) -> list[int]:
        """Of each, all its answers, with the prompt as often."""
        return tokens_of(examples)


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
