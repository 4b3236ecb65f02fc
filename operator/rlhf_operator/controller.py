"""One pass over one job: observe → plan → act → one status write → events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal, NamedTuple, Protocol

from rlhf_api.job import RLHFJob
from rlhf_api.status import Condition, JobStatus
from rlhf_api.validation import InvalidJob

from rlhf_operator.conditions import KINDS, State, with_conditions
from rlhf_operator.events import Event, events
from rlhf_operator.expiry import next_pass
from rlhf_operator.messages import redacted
from rlhf_operator.names import JobKey
from rlhf_operator.observed import Observed
from rlhf_operator.plan import Action, CreateChildren, DeleteChildren, assess, plan
from rlhf_operator.render import Platform, render
from rlhf_operator.status import next_status
from rlhf_operator.support import unsupported
from rlhf_operator.times import written
from rlhf_operator.unread import (
    conditions_of,
    has_unread_status,
    is_left_alone,
    readable_job,
    state_of,
)


class Refused(Exception):
    """What was asked for is not possible, for a reason that people have to know.

    `kind`: Stalled where somebody has to change something, Reconciling where it may pass by itself.
    """

    is_in_the_way: bool = True
    """Whether the job does not go on; else it is told beside what the job does."""

    def __init__(self, kind: Literal["Stalled", "Reconciling"], reason: str, message: str) -> None:
        super().__init__(message)
        self.state = State(kind, reason, redacted(message))


class OutOfDate(Exception):
    """What the pass looked at is not what is there any more: it is to be repeated on fresh data."""


class StatusRefused(Exception):
    """What is to be written down of a job is not taken. No attempt begins before it is."""


class Cluster(Protocol):
    """All that a pass needs of a cluster, or of one machine.

    Methods that write raise Refused for what a condition is to say, and OutOfDate.
    """

    @property
    def platform(self) -> Platform:
        """What the objects are rendered for."""

    async def load(self, key: JobKey) -> dict[str, Any] | None:
        """The RLHFJob with its status; None where it is gone, or nothing is to be done for it."""

    async def observe(self, job: RLHFJob, now: datetime) -> Observed:
        """What is there of the job's children."""

    async def confirm(self, key: JobKey) -> None:
        """OutOfDate where the RLHFJob is not any more what `load` gave."""

    async def apply(self, job: RLHFJob, objects: Sequence[dict[str, Any]]) -> None:
        """Makes the objects, in order; those that are there stay as they are."""

    async def delete(self, job: RLHFJob, stage: str, attempt: int) -> None:
        """Deletes an attempt's children; pods get their grace period."""

    async def write_status(self, manifest: dict[str, Any], status: JobStatus) -> None:
        """Puts the whole status in place of the one in the manifest, as `load` gave it. OutOfDate
        where the job is not as it was: somebody has edited it, or made another of its name.
        StatusRefused where nothing can be written of it."""

    async def write_conditions(
        self, manifest: dict[str, Any], conditions: Sequence[Condition]
    ) -> None:
        """Puts them in place of those of a status that cannot be read; the rest of it stays."""

    async def emit(self, key: JobKey, happened: Sequence[Event]) -> None:
        """Tells people what happened."""


class Pass(NamedTuple):
    """What one pass did, and when the next one is due even if nothing happens."""

    status: JobStatus | None
    actions: Sequence[Action]
    retry_at: datetime | None = None
    resource_is_newer: bool = False  # the job has fields that this operator does not know


REFUSED_AGAIN: Final = timedelta(minutes=1)
"""How long to wait before what was refused is tried again: somebody may have made room."""


async def reconcile_once(
    cluster: Cluster, key: JobKey, now: datetime, *, is_just_written: bool = False
) -> Pass:
    """Brings a job one step nearer to what is wanted. Safe to repeat, and to break off anywhere.

    `is_just_written`: an attempt of it was, a moment ago. Later, watches that were cut may tell of
    children that are gone before they tell that the job is not to run any more.
    A manifest that admission should have refused becomes a condition, and has no children.
    """
    manifest = await cluster.load(key)
    if manifest is None:
        return Pass(None, ())
    try:
        job = readable_job(manifest)
    except InvalidJob as invalid:
        await _say_unread(cluster, key, manifest, invalid, now)
        return Pass(None, (), resource_is_newer=invalid.is_newer)
    observed = await cluster.observe(job, now)
    assessment = assess(job, observed, now)
    actions = plan(assessment)
    if not is_just_written and any(isinstance(action, CreateChildren) for action in actions):
        await cluster.confirm(key)
    refused = await _act(cluster, job, actions)
    status = next_status(assessment, actions)
    if refused:
        state = refused.state if refused.is_in_the_way else _beside(status, refused)
        status = _with_state(job.status or JobStatus(), status, state, now)
    await _write(cluster, key, manifest, job.status, status)
    due = next_pass(job, observed, status)
    if refused:
        due = min(filter(None, (due, now + REFUSED_AGAIN)))
    is_held = refused is not None and refused.is_in_the_way
    return Pass(status, () if is_held else actions, due)


async def say_broken_off(cluster: Cluster, key: JobKey, error: Exception, now: datetime) -> None:
    """A condition for a pass that broke off by a mistake of ours; what runs goes on.

    The first mistake is told, once: a text that differs each time would be written each time.
    """
    manifest = await cluster.load(key)
    if manifest is None:
        return
    told = [item for item in status_of(manifest).conditions if item.status == "True"]
    if any(item.reason == "InternalError" for item in told):
        return
    said = (
        "A pass over this job broke off by a mistake in the operator, whose log has more; it is "
        f"tried again. {type(error).__name__}: {redacted(str(error), 512)}"
    )
    await _say(cluster, key, manifest, State("Reconciling", "InternalError", said), now)


async def _act(cluster: Cluster, job: RLHFJob, actions: Sequence[Action]) -> Refused | None:
    """Deletions first, so that what they free is there for what starts.

    Gives the first refusal that is in the way, or the first; other stages go on beside it. What
    could not be deleted is tried again for as long as it lives, and keeps back whatever must not
    live beside it.
    """
    found: list[Refused] = []
    for action in sorted(actions, key=lambda action: not isinstance(action, DeleteChildren)):
        try:
            if isinstance(action, DeleteChildren):
                await cluster.delete(job, action.stage, action.attempt)
            elif isinstance(action, CreateChildren):
                await _create(cluster, job, action)
        except Refused as refused:
            found.append(refused)
    return min(found, key=lambda refused: not refused.is_in_the_way, default=None)


async def _create(cluster: Cluster, job: RLHFJob, action: CreateChildren) -> None:
    if problems := unsupported(job, cluster.platform):
        raise Refused("Stalled", "Unsupported", str(InvalidJob(problems)))
    await cluster.apply(job, render(job, *action, cluster.platform))


async def _write(
    cluster: Cluster,
    key: JobKey,
    manifest: dict[str, Any],
    before: JobStatus | None,
    status: JobStatus,
) -> None:
    """One write, none where nothing changed; what happened is told once it is written down."""
    if status != before:
        await cluster.write_status(manifest, status)
        await cluster.emit(key, events(before, status))


async def _say_unread(
    cluster: Cluster, key: JobKey, manifest: dict[str, Any], invalid: InvalidJob, now: datetime
) -> None:
    """A job that cannot be read gets a condition. A status that cannot be read stays beside it."""
    if is_left_alone(manifest, invalid):
        return
    state = state_of(invalid)
    if not has_unread_status(invalid):
        await _say(cluster, key, manifest, state, now)
        return
    before = conditions_of(manifest)
    generation = manifest["metadata"].get("generation", 1)
    after = with_conditions(before, state, generation=generation, now=written(now))
    if after != before:
        await cluster.write_conditions(manifest, after)
        told = events(JobStatus(conditions=before), JobStatus(conditions=after))
        await cluster.emit(key, told)


async def _say(
    cluster: Cluster, key: JobKey, manifest: dict[str, Any], state: State, now: datetime
) -> None:
    """Puts into the conditions why the job cannot go on; all else of the status stays."""
    before = status_of(manifest)
    generation = manifest.get("metadata", {}).get("generation", 1)
    seen = before.model_copy(update={"observed_generation": generation})
    status = _with_state(before, seen, state, now)
    await _write(cluster, key, manifest, before, status)


def _beside(status: JobStatus, refused: Refused) -> State:
    """The state of the job as it is, and behind it what could not be tidied up."""
    held = next(item for item in status.conditions if item.type in KINDS and item.status == "True")
    said = f"{held.message.rstrip('.')}. Left behind: {refused.state.message}"
    return State(held.type, held.reason, redacted(said))


def _with_state(before: JobStatus, status: JobStatus, state: State, now: datetime) -> JobStatus:
    """The status with that state in its conditions, whose times tell what turned since `before`."""
    known = {item.type: item for item in before.conditions}
    kept = [
        known.get(item.type, item) if item.type in KINDS else item for item in status.conditions
    ]
    generation = status.observed_generation
    conditions = with_conditions(kept, state, generation=generation, now=written(now))
    update: dict[str, Any] = {"conditions": conditions}
    if state.true == "Stalled":
        update["phase"] = "Failed"
    return status.model_copy(update=update)


def status_of(manifest: dict[str, Any]) -> JobStatus:
    """The status as we wrote it. Raises ValueError where that is not what it is."""
    return JobStatus.model_validate(manifest.get("status") or {}, by_alias=True, by_name=False)
