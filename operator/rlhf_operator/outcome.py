"""Why an attempt ended, read from what its pods left behind."""

from __future__ import annotations

from typing import Literal, NamedTuple

from rlhf_api.run import PEER_LOST, PREPARE, ExitCode, StageResult
from rlhf_api.status import AttemptEnd

from rlhf_operator.messages import LIMIT, redacted
from rlhf_operator.observed import Attempt, Pod

Kind = Literal["Done", "Fault", "Final", "Disruption"]

REASONS: dict[int, str] = {
    ExitCode.CONFIGURATION: "ConfigurationError",
    ExitCode.CHECKPOINT: "CheckpointUnusable",
    ExitCode.DIVERGED: "Diverged",
    ExitCode.TRANSIENT: "TransientError",
    ExitCode.TERMINATED: "Terminated",
    137: "Killed",
}


class Outcome(NamedTuple):
    """How an attempt ended."""

    kind: Kind
    reason: str
    message: str = ""
    exit_code: int | None = None
    pod: Pod | None = None
    result: StageResult | None = None


def outcome_of(attempt: Attempt) -> Outcome:
    """The one cause of an attempt's end.

    A configuration error says the same on every rank and outranks all else. A disrupted pod takes
    its peers with it, whose own exit codes then tell nothing. Otherwise the pod that failed first
    is the cause: those after it failed because it did.
    """
    failed = sorted((p for p in attempt.pods if p.phase == "Failed"), key=_failure_order)
    wrong = [pod for pod in failed if pod.exit_code == ExitCode.CONFIGURATION]
    disrupted = [pod for pod in failed if pod.is_disrupted]
    if wrong:
        return _failure("Final", wrong[0])
    if attempt.reason == "DeadlineExceeded":
        said = "The attempt ran longer than retry.deadlineSeconds."
        return Outcome("Fault", "DeadlineExceeded", said)
    if disrupted:
        return _failure("Disruption", disrupted[0])
    if failed:
        return _failure("Fault", failed[0])
    return _success(attempt)


def _failure_order(pod: Pod) -> tuple[bool, bool, float, int]:
    """Pods that were merely told to end come last, before them those that lost another; then by
    time, which is told in whole seconds, and by the clocks of different nodes."""
    told_to_end = pod.exit_code in (137, ExitCode.TERMINATED) and pod.reason is None
    lost_another = pod.result is not None and pod.result.reason == PEER_LOST
    return told_to_end, lost_another, pod.finished_at or 0.0, pod.completion_index


def _failure(kind: Kind, pod: Pod) -> Outcome:
    code = pod.exit_code
    reason = pod.result.reason if pod.result else pod.reason
    if kind == "Disruption":  # who took the pod away says more than that it saved when it was told
        reason = pod.reason or reason
    if reason is None:
        reason = REASONS.get(code or -1, "Error")
    text = pod.result.message if pod.result else pod.message
    return Outcome(kind, reason, redacted(text), code, pod, pod.result)


def described(end: AttemptEnd) -> str:
    """An end for people: `rank 3 on node-b (ppo-2-1): exit 137, OOMKilled.` and the last lines.

    A configuration error says the same on every rank: there the text is enough.
    """
    if end.message and (end.exit_code == ExitCode.CONFIGURATION or end.pod is None):
        return end.message
    ranks = f"rank{'s' if '-' in end.ranks else ''} {end.ranks}" if end.ranks else None
    where = " ".join(filter(None, (ranks, f"on {end.node}" if end.node else None)))
    who = f"{where} ({end.pod})" if where and end.pod else where or end.pod or ""
    how = f"exit {end.exit_code}, {end.reason}" if end.exit_code is not None else end.reason
    head = f"{who}: {how}." if who else f"{how}."
    room = LIMIT - len(head.encode()) - 1
    return f"{head} {redacted(end.message, room)}".strip() if room > 64 else head


def _success(attempt: Attempt) -> Outcome:
    """Exit code 0 counts only with the result that proves it: later stages need its digest."""
    results = [pod.result for pod in attempt.pods if pod.result]
    for result in results:
        if result.exit_code == ExitCode.DONE and (result.checkpoint or attempt.stage == PREPARE):
            return Outcome("Done", "Done", redacted(result.message), 0, None, result)
    if attempt.condition == "Failed":
        said = "The Job failed, and no pod tells why."
        return Outcome("Fault", attempt.reason or "JobFailed", said)
    if any(pod.exit_code is None for pod in attempt.pods) or len(attempt.pods) < attempt.size:
        said = "Every pod succeeded, but some were deleted before anybody had read their result."
        return Outcome("Disruption", "PodsGone", said)
    return Outcome(
        "Fault", "NoResult", "Every pod ended with exit code 0, but none named its checkpoint.", 0
    )
