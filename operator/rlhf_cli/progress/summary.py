"""The table at the end of a run, and of `rlhfctl status`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final, TextIO

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rlhf_api.job import RLHFJob
from rlhf_api.status import JobStatus

from rlhf_cli.figures import (
    TITLES,
    device_time,
    duration,
    figure_text,
    key_figures,
    model_scores,
)
from rlhf_cli.pipes import nobody_reads
from rlhf_cli.progress.rows import StageRow, stage_rows, warnings_of
from rlhf_cli.progress.terminal import STYLES, WIDE

LOG_WIDTH: Final = 120
GAP: Final = "   "

NEEDS: Final = (("Scheduled", "False"), ("ApprovalNeeded", "True"))
"""Conditions that tell what a job waits for."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """The command ends as it would have; rich would end it here, with 1."""
        nobody_reads(self.file)


def console_for(stream: TextIO) -> Console:
    """A console on a stream; a log has no width of its own."""
    return _Console(file=stream, highlight=False, width=None if stream.isatty() else LOG_WIDTH)


def print_summary(console: Console, job: RLHFJob, now: datetime) -> None:
    """Each stage with its time and key figures, the scores of all models, and what to look at."""
    status, rows = job.status or JobStatus(), stage_rows(job, now)
    statuses = job.stage_statuses()
    reached = [_reached(row, statuses[row.name].metrics) for row in rows]
    if console.width >= WIDE:
        console.print(_table(rows, reached))
    else:
        _print_narrow(console, rows, reached)
    if scores := model_scores(job):
        told = "   ".join(
            f"{TITLES[model]} {figure_text(score)}" for model, score in scores.items()
        )
        console.print(f"Score of the answers to the evaluation prompts:   {told}", soft_wrap=True)
    if spent := device_time(status):
        console.print(f"Device time:   {spent}", soft_wrap=True)
    for line in (*warnings_of(job), *_needed(status)):
        console.print(line, soft_wrap=True, markup=False)


def _needed(status: JobStatus) -> Iterator[str]:
    """What the job waits for: a place for its pods, or a person."""
    for condition in status.conditions:
        if (condition.type, condition.status) in NEEDS:
            yield f"{condition.type}: {condition.message}"


class Figures:
    """Labels with their values, of which none is torn apart: as many on a line as fit."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._words = [f"{label} {value}" for label, value in pairs]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines: list[str] = []
        for word in self._words:
            longer = GAP.join([*lines[-1:], word])
            if lines and len(longer) <= options.max_width:
                lines[-1] = longer
            else:
                lines.append(word)
        yield Text("\n".join(lines))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(max(map(len, self._words)), len(GAP.join(self._words)))


def _reached(row: StageRow, metrics: Mapping[str, float]) -> RenderableType:
    """What a stage has reached, or why it waits or failed, whatever it had reached by then."""
    figures = key_figures(row.name, metrics, is_final=row.phase != "Running")
    has_news = row.phase in ("Running", "Succeeded") or not row.note
    return Figures(figures) if figures and has_news else Text(row.note)


def _table(rows: Sequence[StageRow], reached: Sequence[RenderableType]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for heading in ("Stage", "Result", "Time", "Attempts", "Key figures"):
        table.add_column(heading, no_wrap=heading != "Key figures")
    for row, last in zip(rows, reached, strict=True):
        table.add_row(
            Text(TITLES.get(row.name, row.name)),
            Text(row.phase, style=STYLES.get(row.phase, "dim")),
            Text(duration(row.elapsed) if row.elapsed is not None else "–"),
            Text(str(row.attempt) if row.attempt else "–"),
            last,
        )
    return table


def _print_narrow(
    console: Console, rows: Sequence[StageRow], reached: Sequence[RenderableType]
) -> None:
    """The same where a last column would have no room: below each stage what the table has last."""
    for row, below in zip(rows, reached, strict=True):
        time = duration(row.elapsed) if row.elapsed is not None else ""
        again = f"attempt {row.attempt}" if row.attempt > 1 else ""
        phase = (f"{row.phase:<9}", STYLES.get(row.phase, "dim"))
        line = Text.assemble(f"{row.title:<8} ", phase, f"  {time}  {again}")
        line.rstrip()
        console.print(line, soft_wrap=True)
        if not isinstance(below, Text) or below:
            console.print(Padding(below, (0, 0, 0, 2)))
    console.print()
