"""What happened, read from the difference of two statuses: one event a transition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from rlhf_api.status import AttemptEnd, JobStatus, StageStatus, Timeline

from rlhf_operator import pausing
from rlhf_operator.alarms import ALARMS
from rlhf_operator.decisions import TOLD
from rlhf_operator.messages import redacted
from rlhf_operator.outcome import described
from rlhf_operator.waiting import UNPLACED

Kind = Literal["Normal", "Warning"]

TERMINAL: Final = {"Ready": "Succeeded", "Stalled": "Failed", "Suspended": "Suspended"}

TOLD_BY_OTHERS: Final = (
    "Preparing",
    "WaitingForParents",
    *pausing.REASONS,
    "Terminating",
    "StageRemoved",
)
"""Reasons to wait that say nothing which the events of other stages, or of the job, do not."""

QUEUED: Final = UNPLACED - {"PodsPending", "JobSuspended"}
"""What `Queued` tells of. That pods are being made is a step that every attempt takes, and what
nobody is to do is a warning."""

BY_AN_EDIT: Final = ("InputsChanged", "SettingsChanged")
"""Why an attempt makes room for another; nothing is wrong."""

PASSING: Final = QUEUED | {"PodsPending", "Starting", "PodsStarting", "PodsMissing", *BY_AN_EDIT}
"""Steps that every attempt takes, or that `Queued` or `AttemptStopped` tells of."""


WHEN: Final = {
    "Queued": "pods wait for their place, and the scheduler, a queue or a gate has said why",
    "GangAdmitted": "every pod of the gang has its place, and not all run yet",
    "StageStarted": "every pod of the attempt runs",
    "CheckpointSaved": "the trainer reports a newer saved step (metric `checkpoint/step`)",
    "MetricAlarm": "KL is above 80 % of `maxKl`, or twice `kl.adaptive.target`; again only after "
    "it fell by 10 %",
    "AttemptFault": "an attempt ended by a fault: rank, node, exit code, reason, last lines",
    "AttemptFinal": "an attempt ended by an error that no other attempt would mend",
    "AttemptDisruption": "the cluster ended an attempt, or somebody did",
    "AttemptStopped": "an attempt ended because it was told to: an edit, a suspension",
    "StageSucceeded": "a stage is done",
    "StageFailed": "a stage has failed for good",
    "StageSkipped": "an earlier result on the same inputs is taken",
    "Succeeded": "the job is done",
    "Failed": "the job is stalled: no stage goes on",
    "Suspended": "the job is suspended, and its pods end",
    "StatusRefused": "a policy, a webhook or a missing right refuses the job's status, in its own "
    "words: no attempt begins; told anew each hour while that lasts, as no condition can tell it",
}
"""What each event means, for the reference. Beside these, a stage that begins to wait is told by
its reason."""


class Event(NamedTuple):
    """One thing that happened."""

    type: Kind
    reason: str
    message: str
    stage: str | None = None


def events(before: JobStatus | None, after: JobStatus) -> list[Event]:
    """What a write of `after` in place of `before` says; to be emitted once it has succeeded."""
    old = before or JobStatus()
    found: list[Event] = []
    for name, status in after.every_stage().items():
        found += _of_stage(name, old.of(name), status)
    return found + list(_of_job(old, after))


def status_refused(said: str) -> Event:
    """The one event that no write precedes; `said`: the API server's words."""
    text = f"No attempt begins before its number can be written down. {said}"
    return Event("Warning", "StatusRefused", redacted(text))


def _of_stage(name: str, old: StageStatus, new: StageStatus) -> Iterator[Event]:
    """In the order in which it happened: an attempt runs, saves, ends, and what that means."""
    for event in (*_steps(old, new), *_reports(old, new), *_results(old, new)):
        yield event._replace(message=f"{name}: {event.message}", stage=name)


def _steps(old: StageStatus, new: StageStatus) -> Iterator[Event]:
    """The way of the newest attempt onto nodes; steps that are seen together are told together."""
    same = old.attempt == new.attempt
    was = (old.timeline if same else None) or Timeline()
    now = new.timeline or Timeline()
    is_queued, was_queued = new.reason in QUEUED, same and old.reason in QUEUED
    if is_queued and not was_queued:
        yield Event("Normal", "Queued", new.message or f"attempt {new.attempt} waits.")
    ended = new.ended if new.ended != old.ended else None  # of an attempt that has a successor, too
    if ended and ended.exit_code is not None:
        if old.attempt != ended.attempt or not (old.timeline and old.timeline.running):
            yield Event("Normal", "StageStarted", f"attempt {ended.attempt} runs.")
    elif now.running and not was.running:
        yield Event("Normal", "StageStarted", f"attempt {new.attempt} runs.")
    elif now.scheduled and not was.scheduled:
        yield Event("Normal", "GangAdmitted", f"every pod of attempt {new.attempt} has its place.")


def _reports(old: StageStatus, new: StageStatus) -> Iterator[Event]:
    """What its trainer told."""
    if new.saved and new.saved != old.saved:
        yield Event("Normal", "CheckpointSaved", f"step {new.saved.step} is saved.")
    for alarm in new.alarms:
        if alarm not in old.alarms:
            yield Event("Warning", "MetricAlarm", f"{alarm}: {ALARMS[alarm]}.")


def _results(old: StageStatus, new: StageStatus) -> Iterator[Event]:
    """How it ended, and what it waits for now."""
    if new.ended and new.ended != old.ended:
        yield _end(new.ended)
    is_new = (new.phase, new.hash) != (old.phase, old.hash)
    if new.phase == "Succeeded" and is_new and new.ended == old.ended:
        yield Event("Normal", "StageSkipped", "an earlier result is taken.")
    if new.phase == "Failed" and old.phase != "Failed":
        yield Event("Warning", "StageFailed", new.message or new.reason or "")
    if new.reason == old.reason or new.phase not in ("Waiting", "Pending", "Running"):
        return
    if new.reason in TOLD or (new.phase == "Pending" and new.reason not in PASSING):
        yield Event("Warning", new.reason or "Waiting", new.message or "")
    elif new.phase == "Waiting" and new.reason not in TOLD_BY_OTHERS:
        yield Event("Normal", new.reason or "Waiting", new.message or "")


def _end(ended: AttemptEnd) -> Event:
    if ended.kind == "Done":
        return Event("Normal", "StageSucceeded", f"done in attempt {ended.attempt}.")
    kind: Kind = "Normal" if ended.kind == "Stopped" else "Warning"
    return Event(kind, f"Attempt{ended.kind}", f"attempt {ended.attempt} ended: {described(ended)}")


def _of_job(old: JobStatus, new: JobStatus) -> Iterator[Event]:
    before = {condition.type: condition.status for condition in old.conditions}
    for condition in new.conditions:
        turned = condition.status == "True" and before.get(condition.type) != "True"
        if turned and condition.type in TERMINAL:
            kind: Kind = "Warning" if condition.type == "Stalled" else "Normal"
            yield Event(kind, TERMINAL[condition.type], condition.message)
