"""What happens to an operator's whole connection, and to its clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from faults.audit import KILLS, Plan, Strike, calm, killed_twice_at, once

Kind = Literal[
    "calm",
    "503",  # nothing gets through, reads and watches included
    "401",  # as an API server that has lost sight of its keys, or its etcd
    "cut",  # every watch ends, and goes on from the oldest version
    "silence",  # watches stay open, and tell nothing more
]
REFUSALS: Final[tuple[Kind, ...]] = ("401", "503")
TURNS_AT: Final = "POST jobs/tiny-sft-1"
"""A call that every pipeline makes, when its first pods with devices are about to run."""
KILLED_AT: Final = "POST jobs/tiny-reward-1"
HOUR: Final = 3600
OLDEST: Final = "1"
"""Where watches go on that were cut. The API server says 410 of a kind that was installed later,
and tells all that ever happened to the others again."""


class Turn(NamedTuple):
    """What the weather turns to after a call, and for how many seconds."""

    kind: Kind
    after: str = TURNS_AT
    seconds: float = 1e9


class Weather:
    """Between one pipeline's operators and the API server; it turns once, over all lives."""

    def __init__(self, turn: Turn | None = None) -> None:
        self.turned = asyncio.Event()
        self._turn = turn or Turn("calm")
        self._until = 0.0
        self._sent_back: set[str] = set()

    def notice(self, call: str) -> None:
        """A call was carried out."""
        if call == self._turn.after and not self.turned.is_set() and self._turn.kind != "calm":
            self._until = time.monotonic() + self._turn.seconds
            self.turned.set()

    def _is(self, kind: Kind) -> bool:
        return self._turn.kind == kind and time.monotonic() < self._until

    @property
    def refuses(self) -> str:
        """The status that all requests are answered with; empty where they get through."""
        return next((code for code in REFUSALS if self._is(code)), "")

    @property
    def is_silent(self) -> bool:
        """Whether watches that were open when it turned tell nothing."""
        return self._is("silence")

    @property
    def cuts(self) -> bool:
        """Whether watches that were open when it turned end."""
        return self._turn.kind in ("401", "503", "cut")

    def sends_back(self, path: str) -> bool:
        """Whether a watch is to go on from the oldest version: once for each."""
        if not self._is("cut") or path in self._sent_back:
            return False
        self._sent_back.add(path)
        return True


class Disturbance(NamedTuple):
    """What is done to the operators of one pipeline."""

    strike: Strike = calm
    turn: Turn | None = None
    clocks: Sequence[float] = (0,)
    """Seconds by which the clock of each life is ahead; the last one stays."""

    def clock(self, life: int) -> float:
        """Of the n-th life, counted from 1."""
        return self.clocks[min(life, len(self.clocks)) - 1]


def disturbances(*, is_full: bool) -> dict[str, Disturbance]:
    """By what they do."""
    killed = once(Plan(KILLED_AT, KILLS[1]))
    found = {
        "killed before a call, and after its repetition": Disturbance(killed_twice_at(KILLED_AT)),
        "503 to everything for 6 s": Disturbance(turn=Turn("503", seconds=6)),
        "every watch is cut, and goes on from long ago": Disturbance(turn=Turn("cut")),
        "an hour ahead, killed, an hour behind": Disturbance(killed, clocks=(HOUR, -HOUR)),
        "an hour behind, killed, an hour ahead": Disturbance(killed, clocks=(-HOUR, HOUR)),
    }
    slow = {
        "503 to everything for a minute": Disturbance(turn=Turn("503", seconds=60)),
        "401 to everything for 6 s": Disturbance(turn=Turn("401", seconds=6)),
        "every watch falls silent": Disturbance(turn=Turn("silence")),
    }
    return found | slow if is_full else found
