"""All pipelines of a campaign, and what they are judged by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from faults.invariants import INVARIANTS, Endless, Expected, Run

UNDISTURBED: Final = "undisturbed"


class Results(NamedTuple):
    """By what was done to the operator."""

    runs: Mapping[str, Run | Endless]
    expected: Expected

    @property
    def ended(self) -> dict[str, Run]:
        """Those that came to an end."""
        return {name: run for name, run in self.runs.items() if isinstance(run, Run)}

    @property
    def endless(self) -> dict[str, str]:
        """What is known of the others."""
        return {name: str(run) for name, run in self.runs.items() if isinstance(run, Endless)}

    def broken(self, invariant: str) -> dict[str, list[str]]:
        """How an invariant was broken, by what was done to the operator."""
        check = INVARIANTS[invariant]
        said = {name: list(check(run, self.expected)) for name, run in self.ended.items()}
        return {name: sentences for name, sentences in said.items() if sentences}

    def missed(self) -> list[str]:
        """Faults that never struck, as their call was never made."""
        return [n for n, run in self.ended.items() if n != UNDISTURBED and not run.has_struck]
