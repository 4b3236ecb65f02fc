"""What happened, read from the difference of two statuses: one event a transition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from rlhf_api.run import PREPARE
from rlhf_api.status import AttemptEnd, JobStatus, StageStatus

TERMINAL: Final = {"Ready": "Succeeded", "Stalled": "Failed", "Suspended": "Suspended"}


class Event(NamedTuple):
    """One thing that happened."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    stage: str | None = None


def events(before: JobStatus | None, after: JobStatus) -> list[Event]:
    """What a write of `after` in place of `before` says; to be emitted once it has succeeded."""
    old = before or JobStatus()
    found: list[Event] = []
    stages = {PREPARE: after.prepare, **after.stages}
    for name, status in stages.items():
        previous = old.prepare if name == PREPARE else old.stages.get(name)
        found += _of_stage(name, previous or StageStatus(), status or StageStatus())
    return found + list(_of_job(old, after))


def _of_stage(name: str, old: StageStatus, new: StageStatus) -> Iterator[Event]:
    if new.ended and new.ended != old.ended:
        yield _end(name, new.ended)
    began = new.attempt > old.attempt or (new.attempt == old.attempt and old.start_time is None)
    if new.start_time and began and new.phase != "Succeeded":
        yield Event("Normal", "StageStarted", f"{name}: attempt {new.attempt} started.", name)
    if new.phase == "Succeeded" and old.phase != "Succeeded" and new.ended == old.ended:
        yield Event("Normal", "StageSkipped", f"{name}: an earlier result is taken.", name)
    if new.phase == "Failed" and old.phase != "Failed":
        yield Event("Warning", "StageFailed", f"{name}: {new.message or new.reason}", name)
    if new.phase == "Waiting" and new.reason != old.reason:
        yield Event("Normal", new.reason or "Waiting", f"{name}: {new.message or ''}", name)


def _end(name: str, ended: AttemptEnd) -> Event:
    if ended.kind == "Done":
        return Event("Normal", "StageSucceeded", f"{name}: done in attempt {ended.attempt}.", name)
    code = f", exit code {ended.exit_code}" if ended.exit_code is not None else ""
    pod = f", pod {ended.pod}" if ended.pod else ""
    text = f"{name}: attempt {ended.attempt} ended, {ended.reason}{code}{pod}. {ended.message}"
    kind: Literal["Normal", "Warning"] = "Normal" if ended.kind == "Stopped" else "Warning"
    return Event(kind, f"Attempt{ended.kind}", text.strip(), name)


def _of_job(old: JobStatus, new: JobStatus) -> Iterator[Event]:
    before = {condition.type: condition.status for condition in old.conditions}
    for condition in new.conditions:
        turned = condition.status == "True" and before.get(condition.type) != "True"
        if turned and condition.type in TERMINAL:
            kind: Literal["Normal", "Warning"] = (
                "Warning" if condition.type == "Stalled" else "Normal"
            )
            yield Event(kind, TERMINAL[condition.type], condition.message)
