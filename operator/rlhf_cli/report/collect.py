"""Everything that a report shows, gathered from the directory of a run."""

from __future__ import annotations

from typing import Any, NamedTuple

from rlhf_api.job import RLHFJob
from rlhf_api.run import PREPARE
from rlhf_api.status import JobStatus, StageStatus

from rlhf_cli.report.records import (
    Answer,
    MetricRow,
    merged_metrics,
    read_answers,
    read_metrics,
    read_object,
)
from rlhf_cli.run_folder import RunFolder


class StageRecord(NamedTuple):
    """What one stage left behind."""

    name: str
    status: StageStatus
    rows: list[MetricRow] = []  # noqa: RUF012  (never changed)
    versions: dict[str, Any] = {}  # noqa: RUF012
    data: dict[str, Any] = {}  # noqa: RUF012


class Run(NamedTuple):
    """A whole run."""

    job: RLHFJob
    status: JobStatus
    stages: list[StageRecord]
    answers: list[Answer]
    versions: dict[str, Any]


def collect(folder: RunFolder) -> Run:
    """Read a run. Raises Failure where there is none."""
    job = folder.job()
    status = job.status or JobStatus()
    names = list(job.spec.stages.present())
    records = [StageRecord(PREPARE, status.prepare)] if status.prepare else []
    records += [_stage(folder, job, name, status.stages.get(name, StageStatus())) for name in names]
    answers = [answer for name in names for answer in _answers(folder, job, name, status)]
    return Run(job, status, records, answers, read_object(folder.versions))


def _stage(folder: RunFolder, job: RLHFJob, name: str, status: StageStatus) -> StageRecord:
    attempts = folder.attempts(job, name, status)
    rows = merged_metrics([read_metrics(path / "metrics.jsonl") for path in attempts])
    versions: dict[str, Any] = {}
    data: dict[str, Any] = {}
    for path in attempts:
        versions |= read_object(path / "versions.json")
        data = read_object(path / "data.json") or data
    return StageRecord(name, status, rows, versions, data)


def _answers(folder: RunFolder, job: RLHFJob, name: str, status: JobStatus) -> list[Answer]:
    """A stage's answers; a later attempt's replace an earlier one's."""
    latest: dict[tuple[str, str], Answer] = {}
    for path in folder.attempts(job, name, status.stages.get(name, StageStatus())):
        latest |= {(item.model, item.id): item for item in read_answers(path / "samples.jsonl")}
    return list(latest.values())
