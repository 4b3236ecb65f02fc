"""One pass over one job: observe → plan → act → one status write → events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from rlhf_api.job import RLHFJob
from rlhf_api.status import JobStatus
from rlhf_api.validation import InvalidJob, parse_job

from rlhf_operator.conditions import State, with_conditions
from rlhf_operator.events import Event, events
from rlhf_operator.messages import redacted
from rlhf_operator.observed import Observed
from rlhf_operator.plan import Action, CreateChildren, DeleteChildren, plan
from rlhf_operator.render import Platform, render
from rlhf_operator.status import next_status
from rlhf_operator.times import read, written


class JobKey(NamedTuple):
    """Which RLHFJob."""

    namespace: str
    name: str


class Cluster(Protocol):
    """All that a pass needs of a cluster, or of one machine."""

    platform: Platform

    def load(self, key: JobKey) -> dict[str, Any] | None:
        """The RLHFJob with its status; None where it is gone."""

    def observe(self, job: RLHFJob) -> Observed:
        """What is there of the job's children."""

    def apply(self, job: RLHFJob, objects: Sequence[dict[str, Any]]) -> None:
        """Makes the objects, in order; those that are there stay as they are."""

    def delete(self, job: RLHFJob, stage: str, attempt: int) -> None:
        """Deletes an attempt's children; pods get their grace period."""

    def write_status(self, key: JobKey, status: JobStatus) -> None:
        """Puts the whole status in place of the one that `load` gave."""

    def emit(self, key: JobKey, happened: Sequence[Event]) -> None:
        """Tells people what happened."""


class Pass(NamedTuple):
    """What one pass did, and when the next one is due even if nothing happens."""

    status: JobStatus | None
    actions: Sequence[Action]
    retry_at: datetime | None = None


def reconcile_once(cluster: Cluster, key: JobKey, now: datetime) -> Pass:
    """Brings a job one step nearer to what is wanted. Safe to repeat, and to break off anywhere.

    A manifest that admission should have refused becomes a condition, and has no children.
    """
    manifest = cluster.load(key)
    if manifest is None:
        return Pass(None, ())
    try:
        job = parse_job(manifest)
    except InvalidJob as invalid:
        return _refused(cluster, key, manifest, invalid, now)
    observed = cluster.observe(job)
    actions = plan(job, observed, now)
    _act(cluster, job, actions)
    status = next_status(job, observed, actions, now)
    if status != job.status:
        cluster.write_status(key, status)
        cluster.emit(key, events(job.status, status))
    return Pass(status, actions, _retry_at(status, now))


def _act(cluster: Cluster, job: RLHFJob, actions: Sequence[Action]) -> None:
    """Deletions first, so that what they free is there for what starts."""
    for action in actions:
        if isinstance(action, DeleteChildren):
            cluster.delete(job, action.stage, action.attempt)
    for action in actions:
        if isinstance(action, CreateChildren):
            cluster.apply(job, render(job, *action, cluster.platform))


def _retry_at(status: JobStatus, now: datetime) -> datetime | None:
    """The earliest end of a pause."""
    stages = [status.prepare, *status.stages.values()]
    waiting = [s.retry_time for s in stages if s and s.reason == "BackingOff" and s.retry_time]
    return min((read(text) for text in waiting), default=None)


def _refused(
    cluster: Cluster, key: JobKey, manifest: dict[str, Any], invalid: InvalidJob, now: datetime
) -> Pass:
    generation = manifest.get("metadata", {}).get("generation", 1)
    before = _status_of(manifest)
    state = State("Stalled", "InvalidSpec", redacted(str(invalid)))
    status = before.model_copy(
        update={
            "observed_generation": generation,
            "phase": "Failed",
            "conditions": with_conditions(
                before.conditions, state, generation=generation, now=written(now)
            ),
        }
    )
    if status != before:
        cluster.write_status(key, status)
        cluster.emit(key, events(before, status))
    return Pass(status, ())


def _status_of(manifest: dict[str, Any]) -> JobStatus:
    """The status as we wrote it; one that we did not write, and cannot read, is started afresh."""
    try:
        return JobStatus.model_validate(manifest.get("status") or {}, by_alias=True, by_name=False)
    except ValueError:
        return JobStatus()
