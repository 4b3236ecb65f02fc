"""What is wrong with a manifest, in words for the person who wrote it."""

from __future__ import annotations

from typing import Final, NamedTuple

UNKNOWN_FIELD: Final = "is not a known field"


class Problem(NamedTuple):
    """One thing wrong with a manifest."""

    path: str  # spec.stages.ppo.kl.coef
    message: str  # what is wrong
    allowed: str = ""  # what would be right, and what to do

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" + (f" ({self.allowed})" if self.allowed else "")


class InvalidJob(ValueError):
    """A manifest that was refused, with all that is wrong."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems

    @property
    def is_newer(self) -> bool:
        """Whether all that is wrong are fields that this version does not know."""
        return all(problem.message == UNKNOWN_FIELD for problem in self.problems)
