"""What reward sources read and say: questions with their answers, and a score for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from rlhf_trainer.data.examples import Message


class Question(NamedTuple):
    """A prompt as reward sources see it."""

    id: str
    text: str
    messages: tuple[Message, ...]
    tools: tuple[Any, ...]
    row: dict[str, Any]  # the whole row of the data set
    tokens: list[int]  # in the policy's tokens


class Answered(NamedTuple):
    """Responses to score, of all ranks, in the order of their global rows."""

    questions: Sequence[Question]
    answers: Sequence[str]  # without special tokens
    tokens: Sequence[Sequence[int]]  # prompt and response, in the policy's tokens
    finished: Sequence[bool]  # ended by itself, and was not cut for length

    @property
    def prompts(self) -> list[str]:
        """The questions in words."""
        return [question.text for question in self.questions]


class Scores(NamedTuple):
    """One number a response, (B,) float64 each, the same on every rank."""

    raw: Tensor
    normalised: Tensor  # by the statistics that a reward model carries, where asked for
