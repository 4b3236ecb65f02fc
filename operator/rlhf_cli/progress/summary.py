"""The table at the end of a run, and of `rlhfctl status`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rlhf_api.job import RLHFJob
from rlhf_api.status import GPUSeconds, JobStatus

from rlhf_cli.figures import TITLES, duration, figure_text, key_figures
from rlhf_cli.progress.rows import StageRow, stage_rows
from rlhf_cli.progress.terminal import STYLES

LOG_WIDTH: Final = 120

NEEDS: Final = (("Scheduled", "False"), ("ApprovalNeeded", "True"))
"""Conditions that tell what a job waits for."""


def console_for(stream: TextIO) -> Console:
    """A console on a stream; a log has no width of its own."""
    return Console(file=stream, highlight=False, width=None if stream.isatty() else LOG_WIDTH)


def print_summary(console: Console, job: RLHFJob, now: datetime) -> None:
    """Each stage with its time and key figures, then the scores of all models."""
    status = job.status or JobStatus()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for heading in ("Stage", "Result", "Time", "Attempts", "Key figures"):
        table.add_column(heading, no_wrap=heading != "Key figures")
    for row in stage_rows(job, now):
        stage = status.prepare if row.name == "prepare" else status.stages.get(row.name)
        table.add_row(*_cells(row, dict(stage.metrics) if stage else {}))
    console.print(table)
    if scores := model_scores(status):
        told = "   ".join(
            f"{TITLES[model]} {figure_text(score)}" for model, score in scores.items()
        )
        console.print(f"Score of the answers to the evaluation prompts:   {told}", soft_wrap=True)
    for line in (*_device_time(status), *_needed(status)):
        console.print(line, soft_wrap=True, markup=False)


def _device_time(status: JobStatus) -> Iterator[str]:
    """What the devices of all ended attempts were used for; nothing where there were none."""
    sums = [stage.gpu_seconds for stage in status.stages.values() if stage.gpu_seconds]
    if sums:
        times = {
            name: sum(getattr(item, name) for item in sums) for name in GPUSeconds.model_fields
        }
        told = "   ".join(f"{name} {duration(spent)}" for name, spent in times.items())
        yield f"GPU time:   {told}"


def _needed(status: JobStatus) -> Iterator[str]:
    """What the job waits for: a place for its pods, or a person."""
    for condition in status.conditions:
        if (condition.type, condition.status) in NEEDS:
            yield f"{condition.type}: {condition.message}"


def model_scores(status: JobStatus) -> dict[str, float]:
    """The user's judge's mean score of each model, the base model first."""
    found: dict[str, float] = {}
    for name, stage in status.stages.items():
        if "eval/base_score" in stage.metrics:
            found = {"base": stage.metrics["eval/base_score"]} | found
        if "eval/score" in stage.metrics and name in TITLES:
            found[name] = stage.metrics["eval/score"]
    return found


def _cells(row: StageRow, metrics: dict[str, float]) -> list[Text]:
    figures = "   ".join(f"{label} {value}" for label, value in key_figures(row.name, metrics))
    time = duration(row.elapsed) if row.elapsed is not None else "–"
    attempts = str(row.attempt) if row.attempt else "–"
    return [
        Text(TITLES.get(row.name, row.name)),
        Text(row.phase, style=STYLES.get(row.phase, "dim")),
        Text(time),
        Text(attempts),
        Text(figures or row.note),
    ]
