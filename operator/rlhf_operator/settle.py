"""Folds what was observed into the status: ends are counted, progress is noted. No decisions."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from rlhf_api.run import GANG_INCOMPLETE, PREPARE, SAVED_STEP
from rlhf_api.status import JobStatus, SavedStep, StageStatus

from rlhf_operator.accounting import on_timeline
from rlhf_operator.alarms import raised
from rlhf_operator.ends import Look, counted, newest_metrics
from rlhf_operator.observed import Attempt, Observed, Progress, numbered
from rlhf_operator.outcome import Outcome, outcome_of
from rlhf_operator.times import read, written
from rlhf_operator.waiting import is_just_made

GONE_AFTER: Final = timedelta(seconds=5)
"""For how long an attempt's Job must not be seen before it counts as gone: a view of the cluster
may lag behind, and an attempt that still lives must not get a successor."""

MOST_STEPS: Final = 2**53
"""Up to which a number of steps is exact. A status with a larger one than an int64 is refused, and
then nothing of the job could be written down any more."""


def is_under_way(status: StageStatus) -> bool:
    """Whether the newest attempt was begun and its end has not been counted."""
    return status.attempt > (status.ended.attempt if status.ended else 0)


def settled(look: Look, observed: Observed) -> JobStatus:
    """The status with every end that can be seen counted, once."""
    job, status = look.job, look.job.status or JobStatus()
    names = dict.fromkeys([*status.every_stage(), *job.spec.stages.present()])
    stages = {name: _settled_stage(look, name, status.of(name), observed) for name in names}
    prepare = stages.pop(PREPARE)
    sources = status.sources
    result = _newest_outcome(status.prepare, prepare, observed)
    if result and result.kind == "Done" and result.result:
        sources = result.result.sources
    return status.model_copy(update={"prepare": prepare, "stages": stages, "sources": sources})


def _newest_outcome(
    before: StageStatus | None, after: StageStatus, observed: Observed
) -> Outcome | None:
    """The outcome of the prepare attempt that this very pass counted."""
    if after.ended is None or (before and before.ended == after.ended):
        return None
    attempt = numbered(observed.of(PREPARE), after.attempt)
    return outcome_of(attempt) if attempt else None


def _settled_stage(look: Look, stage: str, status: StageStatus, observed: Observed) -> StageStatus:
    if not is_under_way(status):
        return status
    attempt = numbered(observed.of(stage), status.attempt)
    if attempt is None:
        return _without_children(look, stage, status)
    if status.start_time is None and is_just_made(attempt, look.now):
        return status
    progress = observed.progress.get((stage, attempt.number))
    status = _seen(look, stage, on_timeline(status, attempt, look.now), progress)
    if not attempt.has_ended:
        return status
    outcome = _pardoned(status, attempt, outcome_of(attempt))
    return counted(look, stage, status, outcome, _ended_at(look, status, attempt))


def _ended_at(look: Look, status: StageStatus, attempt: Attempt) -> datetime:
    """When its pods ended, by the clocks of their nodes; of which one that is far behind says that
    they ended before they were seen to run."""
    told, seen = attempt.finished_at, status.timeline
    began = seen and (seen.running or seen.bound)
    if told is None or (began and told < read(began)):
        return look.now
    return min(look.now, told)


def _pardoned(status: StageStatus, attempt: Attempt, outcome: Outcome) -> Outcome:
    """A fault whose cause was no fault of the pods: their exit codes tell nothing of it.

    Pods of a node that was lost are gone by now: what was written down still tells of it, or the
    Job.
    """
    if outcome.kind != "Fault":
        return outcome
    if attempt.lost_a_node or (status.timeline and status.timeline.node_lost):
        return Outcome("Disruption", "NodeLost", "A node was lost, and pods of the gang with it.")
    all_ran = status.timeline is not None and status.timeline.running is not None
    if outcome.reason == GANG_INCOMPLETE and not all_ran:  # a pod had no node, or no image
        return outcome._replace(kind="Disruption")
    if attempt.is_terminating:  # somebody deleted it
        return outcome._replace(kind="Disruption")
    return outcome


def _without_children(look: Look, stage: str, status: StageStatus) -> StageStatus:
    """Children that were there and are gone: somebody else took them away."""
    if status.start_time is None:
        return status  # begun in an earlier pass, its children are about to be made
    since = read(status.missing_time) if status.missing_time else None
    if since is None or look.now < since:  # a clock may have been put back
        return status.model_copy(update={"missing_time": written(look.now)})
    if look.now < since + GONE_AFTER:
        return status
    gone = Outcome("Disruption", "PodsGone", "The attempt's pods were deleted.")
    return counted(look, stage, status, gone, since)


def _seen(look: Look, stage: str, status: StageStatus, progress: Progress | None) -> StageStatus:
    """An attempt whose children are there, with what its trainer reports."""
    update: dict[str, Any] = {"missing_time": None}
    if status.start_time is None:
        update["start_time"] = written(look.now)
    if progress:
        metrics = newest_metrics(status.metrics, progress.metrics)
        update |= {
            "progress_percent": progress.percent,
            "remaining_seconds": progress.remaining_seconds,
            "metrics": metrics,
            "alarms": raised(look.job, stage, status.alarms, metrics),
            "saved": _saved(look, status.saved, progress),
        }
    return status.model_copy(update=update)


def _saved(look: Look, before: SavedStep | None, progress: Progress) -> SavedStep | None:
    """What the trainer saved last; a number that stays, or falls, tells of nothing new."""
    step = progress.metrics.get(SAVED_STEP)
    if step is None or not 1 <= step <= MOST_STEPS or (before and step <= before.step):
        return before
    return SavedStep(step=int(step), time=written(look.now))
