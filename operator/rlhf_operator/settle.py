"""Folds what was observed into the status: ends are counted, progress is noted. No decisions."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from rlhf_api.job import RLHFJob
from rlhf_api.resources import RetryPolicy
from rlhf_api.run import PREPARE, ExitCode
from rlhf_api.status import AttemptEnd, FinishedRun, JobStatus, StageStatus

from rlhf_operator.observed import Attempt, Observed, Progress
from rlhf_operator.outcome import Outcome, outcome_of
from rlhf_operator.times import pause, written

HISTORY: Final = 32
"""Results that a stage remembers; what falls out is trained again if its inputs come back."""


def is_under_way(status: StageStatus) -> bool:
    """Whether the newest attempt was begun and its end has not been counted."""
    return status.attempt > (status.ended.attempt if status.ended else 0)


def settled(job: RLHFJob, observed: Observed, now: datetime) -> JobStatus:
    """The status with every end that can be seen counted, once."""
    status = job.status or JobStatus()
    prepare = _settled_stage(job, PREPARE, status.prepare or StageStatus(), observed, now)
    names = dict.fromkeys([*status.stages, *job.spec.stages.present()])
    stages = {
        name: _settled_stage(job, name, status.stages.get(name, StageStatus()), observed, now)
        for name in names
    }
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
    attempt = newest(PREPARE, after, observed)
    return outcome_of(attempt) if attempt else None


def newest(stage: str, status: StageStatus, observed: Observed) -> Attempt | None:
    """What is left of the newest attempt that was begun."""
    return next((a for a in observed.of(stage) if a.number == status.attempt), None)


def retry_policy(job: RLHFJob, stage: str) -> RetryPolicy:
    """The stage's own; `prepare` and stages that were removed have the default one."""
    config = job.spec.stages.present().get(stage)
    return config.retry if config else RetryPolicy()


def _settled_stage(
    job: RLHFJob, stage: str, status: StageStatus, observed: Observed, now: datetime
) -> StageStatus:
    if not is_under_way(status):
        return status
    attempt = newest(stage, status, observed)
    if attempt is None:
        return _without_children(status, retry_policy(job, stage), now)
    status = _in_progress(status, attempt, observed.progress.get((stage, attempt.number)), now)
    if not attempt.has_ended:
        return status
    outcome = outcome_of(attempt)
    if outcome.kind == "Fault" and attempt.is_terminating:
        outcome = outcome._replace(kind="Disruption")  # somebody deleted it; its codes tell nothing
    return _counted(status, outcome, retry_policy(job, stage), now)


def _without_children(status: StageStatus, policy: RetryPolicy, now: datetime) -> StageStatus:
    """Children that were there and are gone: somebody else took them away."""
    if status.start_time is None:
        return status  # begun in an earlier pass, its children are about to be made
    gone = Outcome("Disruption", "PodsGone", "The attempt's pods were deleted.")
    return _counted(status, gone, policy, now)


def stopped(status: StageStatus, reason: str, now: datetime) -> StageStatus:
    """The newest attempt, called off by us; its pods may take a while to end."""
    return _ended(status, now, "Stopped", Outcome("Disruption", reason))


def _in_progress(
    status: StageStatus, attempt: Attempt, progress: Progress | None, now: datetime
) -> StageStatus:
    update: dict[str, Any] = {}
    if status.start_time is None:
        update["start_time"] = written(now)
    if progress:
        update["progress_percent"] = progress.percent
        update["remaining_seconds"] = progress.remaining_seconds
        update["metrics"] = {**status.metrics, **progress.metrics}
    return status.model_copy(update=update)


def _ended(status: StageStatus, now: datetime, kind: str, outcome: Outcome) -> StageStatus:
    end = AttemptEnd.model_validate(
        {
            "attempt": status.attempt,
            "kind": kind,
            "exit_code": outcome.exit_code,
            "reason": outcome.reason,
            "message": outcome.message,
            "pod": outcome.pod,
            "time": written(now),
        }
    )
    return status.model_copy(update={"ended": end, "remaining_seconds": None})


def _counted(
    status: StageStatus, outcome: Outcome, policy: RetryPolicy, now: datetime
) -> StageStatus:
    """Draws a fault on the budget, notes when the next attempt may start, or keeps the result."""
    kind = "Final" if _diverged_again(status, outcome) else outcome.kind
    ended = _ended(status, now, kind, outcome)
    if kind == "Done":
        return _finished(ended, outcome, now)
    if kind == "Disruption":
        disruptions = status.disruptions + 1
        retry = now + pause(policy, disruptions - 1)  # the first is followed at once
        return ended.model_copy(update={"disruptions": disruptions, "retry_time": written(retry)})
    faults = status.faults + 1
    retry = now + pause(policy, faults)
    return ended.model_copy(update={"faults": faults, "retry_time": written(retry)})


def _diverged_again(status: StageStatus, outcome: Outcome) -> bool:
    """Whether two attempts in a row diverged.

    The trainer rolls back once by itself. One more try, from the newest checkpoint and perhaps on
    another node, tells a broken device from a run whose settings diverge; a third would only repeat
    what the second did.
    """
    before = status.ended
    return (
        outcome.exit_code == ExitCode.DIVERGED
        and before is not None
        and before.kind == "Fault"
        and before.exit_code == ExitCode.DIVERGED
        and status.faults > 0
    )


def _finished(status: StageStatus, outcome: Outcome, now: datetime) -> StageStatus:
    result = outcome.result
    metrics = {**status.metrics, **(result.metrics if result else {})}
    done: dict[str, Any] = {
        "completion_time": written(now),
        "progress_percent": 100.0,
        "metrics": metrics,
        "retry_time": None,
    }
    if result and result.checkpoint and status.hash:
        run = FinishedRun(
            hash=status.hash,
            attempt=status.attempt,
            checkpoint=result.checkpoint,
            metrics=metrics,
            start_time=status.start_time,
            completion_time=written(now),
        )
        older = [item for item in status.finished if item.hash != run.hash]
        done |= {"checkpoint": result.checkpoint, "finished": [run, *older][:HISTORY]}
    return status.model_copy(update=done)
