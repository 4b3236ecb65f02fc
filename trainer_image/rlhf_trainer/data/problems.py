"""Rows that cannot be used: how they are named, listed, counted and capped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from rlhf_api.data import DataSource

from rlhf_trainer.errors import BadData

LISTED: Final = 20
"""Problems that a message names; the rest are counted."""


class BadRow(NamedTuple):
    """One row that cannot be used. ``line`` counts from 1; in Parquet and Arrow it counts rows."""

    file: str
    line: int
    reason: str
    hint: str = ""  # what to do about all such rows

    def __str__(self) -> str:
        return (
            f"{self.file}:{self.line}: {self.reason}"
            if self.line
            else f"{self.file}: {self.reason}"
        )


class RowProblem(ValueError):
    """Why a row cannot be used, and what to do about all such rows; whoever knows its file and line
    makes a BadRow of it."""

    def __init__(self, reason: str, *, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


def settle(source: DataSource, bad: Sequence[BadRow], total: int) -> None:
    """Raise BadData unless the source allows these bad rows to be left out of ``total`` rows."""
    if not bad:
        return
    if source.on_error == "refuse":
        raise BadData(report(source, bad, total))
    if len(bad) > source.max_skipped_fraction * total:
        cap = f"maxSkippedFraction allows {source.max_skipped_fraction:.2%}"
        raise BadData(
            f"{report(source, bad, total)}\n({len(bad) / total:.2%} would be left out; {cap})"
        )


def report(source: DataSource, bad: Sequence[BadRow], total: int) -> str:
    """How many there are, what to do where that is known, and the first of them, one a line."""
    rows = "row" if total == 1 else "rows"
    head = f"{source.source}: {len(bad)} of {total} {rows} cannot be used:"
    hints = dict.fromkeys(row.hint for row in bad if row.hint)
    lines = [head, *(f"  ({hint})" for hint in hints), *(f"  {row}" for row in bad[:LISTED])]
    if len(bad) > LISTED:
        lines.append(f"  … and {len(bad) - LISTED} more")
    return "\n".join(lines)
