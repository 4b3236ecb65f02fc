"""One row a stage, from the job's status. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

from rlhf_api.job import RLHFJob
from rlhf_api.run import PREPARE
from rlhf_api.status import StagePhase, StageStatus
from rlhf_operator.pausing import INTERRUPTED

from rlhf_cli.figures import SHORT_TITLES, duration, key_figures

SYMBOLS: Final[dict[StagePhase, str]] = {
    "Pending": "·",
    "Waiting": "·",
    "Running": "▸",
    "Succeeded": "✓",
    "Failed": "✗",
    "Suspended": "‖",
}


class StageRow(NamedTuple):
    """What is shown of one stage."""

    name: str
    title: str
    phase: StagePhase
    attempt: int
    percent: float | None
    elapsed: float | None  # seconds
    remaining: float | None  # seconds
    figures: str
    note: str  # why it waits or failed

    @property
    def times(self) -> str:
        """`0:42, 1:10 left`."""
        spent = duration(self.elapsed) if self.elapsed is not None else ""
        left = f", {duration(self.remaining)} left" if self.remaining is not None else ""
        return spent + left if self.phase == "Running" else spent


def stage_rows(job: RLHFJob, now: datetime) -> list[StageRow]:
    """Rows in the order in which the stages run; prepare comes first."""
    return [_row(name, stage, now) for name, stage in job.stage_statuses().items()]


def warnings_of(job: RLHFJob) -> list[str]:
    """What `prepare` found in the data that is hardly meant so."""
    prepare = job.stage_statuses()[PREPARE]
    if prepare.phase != "Succeeded" or prepare.ended is None:
        return []
    return [f"Warning: {line}" for line in prepare.ended.message.splitlines()[1:]]


class NewWarnings:
    """Those of a job that were not asked for before."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def of(self, job: RLHFJob) -> list[str]:
        """Each once."""
        found = [warning for warning in warnings_of(job) if warning not in self._told]
        self._told.update(found)
        return found


def _row(name: str, stage: StageStatus, now: datetime) -> StageRow:
    is_running, is_done = stage.phase == "Running", stage.phase == "Succeeded"
    shown = key_figures(name, stage.metrics, 3, is_final=not is_running)
    figures = "  ".join(f"{label} {value}" for label, value in shown)
    return StageRow(
        name=name,
        title=SHORT_TITLES.get(name, name),
        phase=stage.phase,
        attempt=stage.attempt,
        percent=100.0 if is_done else stage.progress_percent if is_running else None,
        elapsed=_elapsed(stage, now),
        remaining=stage.remaining_seconds if is_running else None,
        figures=figures,
        note="" if is_done else _note(stage),
    )


def _note(stage: StageStatus) -> str:
    """Why it waits; for a failure its reason, too. Who has just pressed Ctrl-C needs one word."""
    if stage.reason == INTERRUPTED.reason:
        return "stopped"
    reason = stage.reason if stage.phase == "Failed" or not stage.message else None
    return ": ".join(part for part in (reason, stage.message) if part)


def _elapsed(stage: StageStatus, now: datetime) -> float | None:
    """Time of the newest attempt, up to now while it runs."""
    if not stage.start_time or stage.phase not in ("Running", "Succeeded", "Failed"):
        return None
    start, is_over = datetime.fromisoformat(stage.start_time), stage.phase != "Running"
    told = stage.completion_time or (stage.ended.time if stage.ended else None)
    end = datetime.fromisoformat(told) if told and is_over else now
    return max(0.0, (end - start).total_seconds())
