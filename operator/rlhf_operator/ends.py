"""How an end of an attempt enters the status: once, with its cause, its cost and its result."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from rlhf_api.job import RLHFJob
from rlhf_api.resources import RetryPolicy
from rlhf_api.run import ExitCode
from rlhf_api.status import (
    MOST_METRICS,
    MOST_RESULTS,
    AttemptEnd,
    EndKind,
    FinishedRun,
    StageStatus,
)

from rlhf_operator.accounting import summed_up
from rlhf_operator.inputs import annotation
from rlhf_operator.names import ANNOTATION_RETRY_STAGE
from rlhf_operator.outcome import Outcome
from rlhf_operator.times import pause, written

LOST_WORK: Final = ("InputsChanged", "StageRemoved")
"""Reasons of ours to stop an attempt after which nobody needs its work."""


class Look(NamedTuple):
    """A job, and when it is looked at."""

    job: RLHFJob
    now: datetime


def retry_policy(job: RLHFJob, stage: str) -> RetryPolicy:
    """The stage's own; `prepare` and stages that were removed have the default one."""
    config = job.spec.stages.present().get(stage)
    return config.retry if config else RetryPolicy()


def retry_is_asked(job: RLHFJob, stage: str, status: StageStatus) -> bool:
    """Whether a person wants another try after the newest attempt, whose end was a failure.

    The number answers that attempt alone: it stays on the job, and never covers a later failure.
    """
    ended = status.ended
    if ended is None or ended.attempt != status.attempt or ended.kind not in ("Fault", "Final"):
        return False
    return annotation(job, f"{ANNOTATION_RETRY_STAGE}{stage}") == str(ended.attempt)


def counted(
    look: Look, stage: str, status: StageStatus, outcome: Outcome, until: datetime
) -> StageStatus:
    """Draws a fault on the budget, notes when the next attempt may start, or keeps the result.

    `until`: when the attempt's pods ended.
    """
    kind = "Final" if _diverged_again(status, outcome) else outcome.kind
    has_saved = outcome.exit_code in (ExitCode.DONE, ExitCode.TERMINATED)
    spent = summed_up(status, until, is_kept=kind == "Done" or has_saved)
    ended = _ended(look, stage, spent, kind, outcome)
    if kind == "Done":
        return _finished(look, ended, outcome)
    policy = retry_policy(look.job, stage)
    if kind == "Disruption":
        disruptions = status.disruptions + 1
        retry = look.now + pause(policy, disruptions - 1)  # the first is followed at once
        return ended.model_copy(update={"disruptions": disruptions, "retry_time": written(retry)})
    faults = status.faults + 1
    retry = look.now + pause(policy, faults)
    return ended.model_copy(update={"faults": faults, "retry_time": written(retry)})


def stopped(look: Look, stage: str, status: StageStatus, reason: str) -> StageStatus:
    """The newest attempt, called off by us; its pods may take a while to end, and save."""
    spent = summed_up(status, look.now, is_kept=reason not in LOST_WORK)
    return _ended(look, stage, spent, "Stopped", Outcome("Disruption", reason))


def _ended(
    look: Look, stage: str, status: StageStatus, kind: EndKind, outcome: Outcome
) -> StageStatus:
    pod = outcome.pod
    end = AttemptEnd(
        attempt=status.attempt,
        kind=kind,
        exit_code=outcome.exit_code,
        reason=outcome.reason[:256],
        message=outcome.message,
        pod=pod.name if pod else None,
        node=pod.node if pod else None,
        ranks=_ranks(look.job, stage, pod.completion_index) if pod else None,
        time=written(look.now),
    )
    over: dict[str, Any] = {"ended": end, "remaining_seconds": None, "missing_time": None}
    return status.model_copy(update=over | {"alarms": []})


def _ranks(job: RLHFJob, stage: str, index: int) -> str | None:
    """Ranks of a pod's processes: torchrun numbers them pod by pod."""
    if stage not in job.spec.stages.present():
        return None
    count = job.spec.resources_of(stage).ranks_per_node
    first, last = index * count, (index + 1) * count - 1
    return str(first) if first == last else f"{first}-{last}"


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


def _finished(look: Look, status: StageStatus, outcome: Outcome) -> StageStatus:
    result, now = outcome.result, _end_time(look)
    metrics = newest_metrics(status.metrics, result.metrics if result else {})
    done: dict[str, Any] = {
        "completion_time": now,
        "progress_percent": 100.0,
        "metrics": metrics,
        "retry_time": None,
    }
    if result and result.checkpoint and status.hash:
        run = FinishedRun(
            hash=status.hash,
            attempt=status.attempt,
            checkpoint=result.checkpoint,
            image=status.image,
            metrics=metrics,
            start_time=status.start_time,
            completion_time=now,
        )
        older = [item for item in status.finished if item.hash != run.hash]
        done |= {"checkpoint": result.checkpoint, "finished": [run, *older][:MOST_RESULTS]}
    return status.model_copy(update=done)


def _end_time(look: Look) -> str:
    """Now, but after every end that is written down: another replica's clock may be ahead, and
    by these times the newest output is found."""
    stages = look.job.status.stages.values() if look.job.status else ()
    return max([written(look.now), *(s.completion_time for s in stages if s.completion_time)])


def newest_metrics(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """The newer values in place of the older ones; no more than a status holds."""
    both = {**before, **after}
    surplus = len(both) - MOST_METRICS
    dropped = [name for name in both if name not in after][: max(0, surplus)]
    kept = {name: value for name, value in both.items() if name not in dropped}
    return dict(list(kept.items())[:MOST_METRICS])
