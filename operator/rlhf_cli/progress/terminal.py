"""Live progress in a terminal: a line a stage, redrawn in place."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.live_render import VerticalOverflowMethod
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from rlhf_api.job import RLHFJob

from rlhf_cli.progress.rows import SYMBOLS, NewWarnings, StageRow, stage_rows

STYLES: Final = {"Succeeded": "green", "Failed": "red", "Running": "bold", "Suspended": "yellow"}
BAR_WIDTH: Final = 24
MARGIN: Final = 3
"""Columns left free, so that the `^C` which a terminal echoes does not begin a new line."""
WIDE: Final = 80
"""Columns from which there is room for a bar."""


class LiveView:
    """Draws the newest status that it was given, again and again: the clock moves in between."""

    def __init__(self, console: Console, overflow: VerticalOverflowMethod = "ellipsis") -> None:
        """`overflow`: what becomes of lines for which the terminal has no room."""
        self.console = console
        self._job: RLHFJob | None = None
        self._live = Live(
            console=console,
            get_renderable=self._render,
            refresh_per_second=4,
            vertical_overflow=overflow,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, job: RLHFJob) -> None:
        """Take a new status."""
        self._job = job

    def _render(self) -> RenderableType:
        raise NotImplementedError


class TerminalProgress(LiveView):
    """A line a stage, and above them what `prepare` warns of."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._warnings = NewWarnings()

    def show(self, job: RLHFJob) -> None:
        """Take a new status."""
        for warning in self._warnings.of(job):
            self.console.print(Text(warning, style="yellow"), soft_wrap=True)
        super().show(job)

    def say(self, text: str) -> None:
        """A line above the stages."""
        self.console.print(Text(text, style="dim"), soft_wrap=True)

    def _render(self) -> RenderableType:
        rows = stage_rows(self._job, datetime.now(UTC)) if self._job else []
        return stage_table(rows, self.console.width)


def stage_table(rows: list[StageRow], width: int) -> Table:
    """The stages as lines: symbol, name, bar, share, times, figures or the reason for waiting."""
    is_wide = width >= WIDE
    times = max((len(row.times) for row in rows), default=0)
    columns = [1, 7, *([BAR_WIDTH] if is_wide else []), 5, max(1, times)]
    table = Table.grid(padding=(0, 1))
    for column in [*columns, max(1, width - sum(columns) - len(columns) - MARGIN)]:
        table.add_column(width=column, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*_cells(row, is_wide))
    return table


def _cells(row: StageRow, is_wide: bool) -> list[RenderableType]:
    style = STYLES.get(row.phase, "dim")
    bar: RenderableType = ""
    if row.phase in ("Running", "Succeeded"):  # without a total the bar pulses
        total = None if row.percent is None else 100
        bar = ProgressBar(total=total, completed=row.percent or 0, width=BAR_WIDTH)
    share = f"{row.percent:3.0f} %" if row.percent is not None else ""
    tail = row.figures or row.note if row.phase in ("Running", "Succeeded") else row.note
    return [
        Text(SYMBOLS[row.phase], style=style),
        Text(row.title, style=style),
        *([bar] if is_wide else []),
        Text(share),
        Text(row.times, style="cyan" if row.phase == "Running" else "dim"),
        Text(tail.replace("\n", " "), style="" if row.phase != "Failed" else "red"),
    ]
