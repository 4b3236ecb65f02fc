"""What a stage waits for, or does next: an ordered chain of pure checks; the first one decides."""

from __future__ import annotations

from datetime import timedelta
from typing import Final, Literal

from rlhf_api.run import PREPARE
from rlhf_api.status import FinishedRun, StageStatus

from rlhf_operator.decisions import Context, Decision, Policy, Verdict
from rlhf_operator.ends import retry_is_asked, retry_policy
from rlhf_operator.gates import gate_closed
from rlhf_operator.inputs import Wanted
from rlhf_operator.names import LABEL_ATTEMPT, LABEL_JOB, LABEL_STAGE, child_name
from rlhf_operator.observed import Attempt, Pod
from rlhf_operator.outcome import described
from rlhf_operator.settle import is_under_way
from rlhf_operator.times import read
from rlhf_operator.waiting import waiting


def decide(context: Context) -> Decision:
    """The first policy's decision that has one; a stage that nothing holds back begins."""
    for policy in POLICIES:
        if decision := policy(context):
            return decision
    return _starting("Begin", context.status.attempt + 1)


def _starting(verdict: Literal["Begin", "Create"], attempt: int) -> Decision:
    """In the same words before its children are made, afterwards, and until somebody says something
    of them: that needs no second write."""
    return Decision(verdict, "Starting", f"Attempt {attempt} starts.")


def finished_run(status: StageStatus, wanted: Wanted | None) -> FinishedRun | None:
    """The result that was reached on the wanted hash, in whichever attempt that was."""
    if wanted is None:
        return None
    return next((run for run in status.finished if run.hash == wanted.hash), None)


def is_prepared(status: StageStatus, wanted: Wanted | None) -> bool:
    """Whether `prepare` has seen the sources as they are now."""
    return (
        wanted is not None
        and status.hash == wanted.hash
        and status.ended is not None
        and status.ended.kind == "Done"
        and not is_under_way(status)
    )


def result_is_there(context: Context) -> Decision | None:
    """A stage that finished on these inputs is never run again."""
    status = context.status
    if context.stage == PREPARE:
        there = is_prepared(status, context.wanted)
    else:
        there = finished_run(status, context.wanted) is not None
    if not there:
        return None
    if is_under_way(status):
        return Decision("Stop", "InputsChanged", "An earlier result is taken.")
    return Decision("Succeeded", "Succeeded")


def paused(context: Context) -> Decision | None:
    """Children end gracefully, and nothing new starts."""
    if context.pause is None:
        return None
    verdict: Verdict = "Stop" if is_under_way(context.status) else "Waiting"
    return Decision(verdict, *context.pause)


def out_of_date(context: Context) -> Decision | None:
    """An attempt on other inputs or settings than the wanted ones makes room.

    While `prepare` looks at changed sources nothing is known, and the attempt goes on: a file that
    only moved changes nothing.
    """
    status = context.status
    if not is_under_way(status) or context.is_current:
        return None
    if context.wanted is None:
        if not context.sources_are_known:
            return None
        return Decision("Stop", "InputsChanged", "An earlier stage has to run again.")
    if context.wanted.hash != status.hash:
        return Decision("Stop", "InputsChanged", "Its inputs changed; it starts afresh.")
    return Decision("Stop", "SettingsChanged", "It goes on from its newest checkpoint.")


def under_way(context: Context) -> Decision | None:
    """An attempt that was written down gets its children, and then time."""
    if not is_under_way(context.status):
        return None
    attempt = context.current
    if attempt is None and context.status.missing_time:
        return Decision("Pending", "PodsMissing", "Its Job is not to be seen any more.")
    if attempt is None:
        if context.wanted is None:
            return Decision("Waiting", "Preparing", "Models and data are being checked.")
        if lost := _live_pods(context):
            return lost
        return _starting("Create", context.status.attempt)
    if context.status.start_time is None:  # it is just made
        return _starting("Create", context.status.attempt)
    if attempt.is_lost:
        return _node_lost(attempt)
    if wait := waiting(attempt):
        return Decision("Pending", *wait)
    if attempt.unlabelled:
        return _labels_lost(context, attempt)
    if left := next((pod for pod in attempt.pods if pod.outlived_by), None):
        return _containers_left(left)
    return Decision("Running", "Training" if context.stage != PREPARE else "Preparing")


def _node_lost(attempt: Attempt) -> Decision:
    lost = [f"{pod.name} on {pod.node or 'its node'}" for pod in attempt.pods if pod.is_lost]
    said = f"Nobody knows whether {', '.join(lost)} still runs; nothing new starts until then."
    return Decision("Running", "NodeLost", said)


def _labels_lost(context: Context, attempt: Attempt) -> Decision:
    job, lost = context.job.metadata, attempt.unlabelled
    who = lost[0] if len(lost) == 1 else f"{lost[0]} and {len(lost) - 1} more"
    labels = (
        f"{LABEL_JOB}={job.name} {LABEL_STAGE}={attempt.stage} {LABEL_ATTEMPT}={attempt.number}"
    )
    pods = f"-l job-name={child_name(job.name, attempt.stage, attempt.number)} -n {job.namespace}"
    said = (
        f"Somebody has taken the operator's labels from {who}. It trains on, and what it reports "
        f"is not taken; to put them back: kubectl label pods {pods} {labels} --overwrite"
    )
    return Decision("Running", "LabelsLost", said)


def _containers_left(pod: Pod) -> Decision:
    said = (
        f"The trainer of {pod.name} has ended, and beside it {', '.join(pod.outlived_by)} still "
        "runs, which somebody's webhook added: until that ends, the pod holds its devices."
    )
    return Decision("Running", "ContainersLeft", said)


def old_pods_live(context: Context) -> Decision | None:
    """Two attempts of a stage never live at the same time."""
    return _live_pods(context)


def _live_pods(context: Context) -> Decision | None:
    newest = context.status.attempt if is_under_way(context.status) else None
    live = [a for a in context.attempts if a.is_live and a.number != newest]
    if not live:
        return None
    if any(attempt.is_lost for attempt in live):
        return _node_lost(live[0])._replace(verdict="Waiting")
    return Decision("Waiting", "Terminating", f"Pods of attempt {live[0].number} are ending.")


def sources_unprepared(context: Context) -> Decision | None:
    """Models and data are fetched and checked before anything asks for GPUs."""
    if context.prepare is None or context.sources_are_known:
        return None
    if context.prepare.verdict in ("Failed", "Blocked"):
        return Decision("Blocked", "PrepareFailed", "Models and data could not be prepared.")
    return Decision("Waiting", "Preparing", "Models and data are being checked.")


def parent_failed(context: Context) -> Decision | None:
    """A failed stage holds back those that take its output, and no other."""
    for name, parent in context.parents.items():
        if parent.verdict in ("Failed", "Blocked"):
            return Decision("Blocked", "ParentFailed", f"It needs the output of {name}.")
    return None


def parents_unfinished(context: Context) -> Decision | None:
    """A stage starts from outputs that are committed."""
    missing = [name for name in context.parents if name not in context.parent_runs]
    if not missing:
        return None
    said = f"It needs the output of {' and '.join(missing)}."
    return Decision("Waiting", "WaitingForParents", said)


def retry_asked(context: Context) -> Decision | None:
    """A person's word ends a pause, and revives a stage that has failed for good."""
    if not retry_is_asked(context.job, context.stage, context.status):
        return None
    return _starting("Begin", context.status.attempt + 1)


def error_is_final(context: Context) -> Decision | None:
    """Configuration errors, and a second divergence, are never retried on the same settings."""
    ended = context.status.ended
    if not context.is_current or ended is None or ended.kind != "Final":
        return None
    return Decision("Failed", ended.reason, described(ended))


def budget_exhausted(context: Context) -> Decision | None:
    """Faults draw on the budget; disruptions and stops do not."""
    ended, faults = context.status.ended, context.status.faults
    allowed = retry_policy(context.job, context.stage).max_faults
    if not context.is_current or ended is None or ended.kind != "Fault" or faults <= allowed:
        return None
    failed = f"{faults} attempts failed" if faults > 1 else "An attempt failed"
    said = f"{failed}, retry.maxFaults is {allowed}. The last: {described(ended)}"
    return Decision("Failed", ended.reason, said)


def backing_off(context: Context) -> Decision | None:
    """A pause that doubles, so that a fault that persists costs little.

    One that would last longer than any pause was written by a clock that was ahead; it is over.
    """
    status = context.status
    if not context.is_current or status.retry_time is None:
        return None
    left = read(status.retry_time) - context.now
    longest = timedelta(seconds=retry_policy(context.job, context.stage).max_backoff_seconds)
    if left <= timedelta() or left > longest:
        return None
    why = described(status.ended) if status.ended else ""
    return Decision("Waiting", "BackingOff", f"Next attempt at {status.retry_time}. {why}".strip())


POLICIES: Final[tuple[Policy, ...]] = (
    result_is_there,
    paused,
    out_of_date,
    under_way,
    sources_unprepared,
    parent_failed,
    parents_unfinished,
    old_pods_live,
    gate_closed,
    retry_asked,
    error_is_final,
    budget_exhausted,
    backing_off,
)
