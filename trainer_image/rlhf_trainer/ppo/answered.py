"""What reward sources read and say: questions with their answers, and a score for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_trainer.data.examples import Extras, Message
from rlhf_trainer.errors import NonFinite


class Question(NamedTuple):
    """A prompt as reward sources see it."""

    id: str
    text: str
    messages: tuple[Message, ...]
    extras: Extras
    row: dict[str, Any]  # the whole row of the data set
    tokens: Sequence[int]  # in the policy's tokens


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

    @classmethod
    def said(cls, who: str, values: Sequence[float], answered: Answered) -> Scores:
        """What code or an endpoint of the user's gave, as it is. NonFinite, on every rank,
        where a number is NaN or Inf: nothing is learnt from it.
        """
        for value, answer in zip(values, answered.answers, strict=True):
            if not math.isfinite(value):
                name = f"the reward of {who} for the answer {answer[:80]!r}"
                raise NonFinite(name, value=str(value))
        scores = torch.tensor(values, dtype=torch.float64)
        return cls(scores, scores)
