"""How far files on their way to this machine are: a bar in a terminal, a few lines in a log."""

from __future__ import annotations

import sys
from typing import Final

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from rlhf_cli.progress.summary import console_for

LARGE: Final = 8 << 20
"""Bytes from which it is worth a line."""
STEPS: Final = 4
"""Lines in a log for all of it."""


class Transfer:
    """A context in which `show` may be called as often as bytes come."""

    def __init__(self, title: str) -> None:
        console = console_for(sys.stderr)
        self._is_terminal = console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        self._bar = Progress(
            *columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console
        )
        self._title = title
        self._task = self._bar.add_task(title, total=None)
        self._told = 0

    def __enter__(self) -> Transfer:
        if self._is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_terminal:
            self._bar.stop()

    def show(self, here: int, total: int) -> None:
        """Bytes that are here, and bytes in all."""
        if self._is_terminal:
            self._bar.update(self._task, completed=here, total=total)
            return
        step = STEPS * here // max(1, total)
        if total >= LARGE and step > self._told:
            self._told = step
            print(f"{self._title}: {here / 1e6:,.0f} of {total / 1e6:,.0f} MB", file=sys.stderr)
