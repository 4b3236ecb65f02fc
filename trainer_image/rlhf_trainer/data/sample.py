"""A row after its layout was understood, before it is known what a stage wants of it."""

from __future__ import annotations

from typing import NamedTuple

from rlhf_trainer.data.examples import Extras
from rlhf_trainer.data.turns import Turns


class Sample(NamedTuple):
    """What was asked and what was answered: no answers, one, or several, best first."""

    prompt: Turns
    answers: tuple[Turns, ...] = ()
    ranks: tuple[int, ...] = ()
    margin: float = 0.0
    good: bool | None = None
    text: str | None = None
    extras: Extras = Extras()
