"""Progress as plain lines, for logs: one for each change of a stage, one every ten seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TextIO

from rlhf_api.job import RLHFJob

from rlhf_cli.progress.rows import NewWarnings, StageRow, stage_rows

INTERVAL: Final = 10.0
"""Seconds between two lines on the same stage in the same phase."""

PATIENCE: Final = 2.0
"""Seconds that a stage may be pending before it is worth a line."""


class LineProgress:
    """Writes lines to a stream."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._said: dict[str, tuple[str, int, str]] = {}
        self._since: dict[str, tuple[tuple[str, int, str], float]] = {}
        self._written: dict[str, float] = {}
        self._warnings = NewWarnings()

    def __enter__(self) -> LineProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()

    def show(self, job: RLHFJob) -> None:
        """Write what is new in a status."""
        for row in stage_rows(job, datetime.now(UTC)):
            if line := self._news(row):
                self.say(f"{datetime.now():%H:%M:%S}  {row.title:<8}{line}")
        for warning in self._warnings.of(job):
            self.say(f"{datetime.now():%H:%M:%S}  {warning}")

    def say(self, text: str) -> None:
        """Write a line."""
        print(text, file=self._stream, flush=True)

    def _news(self, row: StageRow) -> str:
        # A stage that waits says so once for each reason; numbers within the reason may change.
        state = (row.phase, row.attempt, row.note.partition(":")[0])
        is_new = self._said.get(row.name, ("Pending", 0, "")) != state
        if is_new and row.phase == "Pending" and not self._lasts(row.name, state):
            return ""
        is_due = self._clock() - self._written.get(row.name, -INTERVAL) >= INTERVAL
        if not is_new and not (row.phase == "Running" and row.percent is not None and is_due):
            return ""
        self._said[row.name], self._written[row.name] = state, self._clock()
        return describe(row, is_new)

    def _lasts(self, name: str, state: tuple[str, int, str]) -> bool:
        """Whether a stage has been in this state for longer than a start takes."""
        before, since = self._since.get(name, (None, 0.0))
        if before != state:
            since = self._clock()
            self._since[name] = (state, since)
        return self._clock() - since >= PATIENCE


def describe(row: StageRow, is_new: bool) -> str:
    """A stage in words."""
    again = f", attempt {row.attempt}" if row.attempt > 1 and row.phase == "Running" else ""
    phase = row.phase.lower() + again if is_new or row.percent is None else f"{row.percent:.0f} %"
    parts = [
        phase,
        row.times,
        row.figures if row.phase in ("Running", "Succeeded") else "",
        row.note,
    ]
    return "  ".join(part for part in parts if part)
