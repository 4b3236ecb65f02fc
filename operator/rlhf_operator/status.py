"""What to say of a job after a pass: phases and conditions, by the assessment the plan acts on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from rlhf_api.job import RLHFJob
from rlhf_api.run import PREPARE
from rlhf_api.status import Condition, FinishedRun, JobPhase, JobStatus, StagePhase, StageStatus

from rlhf_operator.conditions import conditions
from rlhf_operator.inputs import Wanted
from rlhf_operator.messages import redacted
from rlhf_operator.observed import Observed
from rlhf_operator.plan import Action, Assessment, BeginAttempt, assess, stage_status
from rlhf_operator.policies import Decision, Verdict
from rlhf_operator.settle import is_under_way, newest, stopped
from rlhf_operator.times import written

PHASES: Final[Mapping[str, StagePhase]] = {
    "Succeeded": "Succeeded",
    "Begin": "Pending",
    "Create": "Pending",
    "Running": "Running",
    "Stop": "Pending",
    "Waiting": "Waiting",
    "Blocked": "Waiting",
    "Failed": "Failed",
}


def next_status(
    job: RLHFJob, observed: Observed, actions: Sequence[Action], now: datetime
) -> JobStatus:
    """The whole status that one write puts in place of the old one.

    An attempt is written down exactly where `actions` begins it, so that its number stands in the
    status before its children exist.
    """
    assessment = assess(job, observed, now)
    begun = {action.stage: action for action in actions if isinstance(action, BeginAttempt)}
    stages = {
        name: _stage(job, name, assessment, observed, begun.get(name), now)
        for name in _in_order(job, assessment.status)
    }
    prepare = stages.pop(PREPARE)
    phase = job_phase(job, assessment, stages)
    return assessment.status.model_copy(
        update={
            "observed_generation": job.metadata.generation,
            "phase": phase,
            "prepare": prepare,
            "stages": stages,
            "conditions": _conditions(job, assessment, now),
            "start_time": assessment.status.start_time or (written(now) if begun else None),
            "completion_time": _completion(assessment.status, phase, now),
        }
    )


def _in_order(job: RLHFJob, status: JobStatus) -> list[str]:
    """The spec's stages first; those that were removed keep their history, and their numbers."""
    present = list(job.spec.stages.present())
    return [PREPARE, *present, *(name for name in status.stages if name not in present)]


def _stage(
    job: RLHFJob,
    stage: str,
    assessment: Assessment,
    observed: Observed,
    begin: BeginAttempt | None,
    now: datetime,
) -> StageStatus:
    status = stage_status(assessment.status, stage)
    decision = assessment.decisions.get(stage) or _removed(status)
    if begin:
        status = _begun(status, begin)
    elif decision.verdict == "Stop":
        status = stopped(status, decision.reason, now)
    elif run := assessment.runs.get(stage):
        status = _with_result(status, run)
    attempt = newest(stage, status, observed)
    is_pending = decision.verdict == "Running" and not (attempt and attempt.is_running)
    phase = _suspended(decision) or ("Pending" if is_pending else PHASES[decision.verdict])
    done = decision.verdict == "Succeeded"
    return status.model_copy(
        update={
            "phase": phase,
            "reason": None if done else decision.reason,
            "message": None if done else redacted(decision.message) or None,
        }
    )


def _removed(status: StageStatus) -> Decision:
    """A stage that the spec no longer has."""
    verdict: Verdict = "Stop" if is_under_way(status) else "Waiting"
    return Decision(verdict, "StageRemoved", "The stage is not in the spec any more.")


def _suspended(decision: Decision) -> StagePhase | None:
    return "Suspended" if decision.reason == "Suspended" else None


def _begun(status: StageStatus, begin: BeginAttempt) -> StageStatus:
    """A fresh attempt; counts start again where the inputs or the settings are new."""
    update: dict[str, Any] = {
        "attempt": begin.attempt,
        "hash": begin.hash,
        "settings": begin.settings,
        "start_time": None,
        "completion_time": None,
        "retry_time": None,
        "progress_percent": None,
        "remaining_seconds": None,
        "metrics": {},
        "checkpoint": None,
    }
    if Wanted(begin.hash, begin.settings) != (status.hash, status.settings):
        update |= {"faults": 0, "disruptions": 0}
    return status.model_copy(update=update)


def _with_result(status: StageStatus, run: FinishedRun) -> StageStatus:
    """Shows the result that counts, also where an older attempt reached it on these inputs."""
    if status.hash == run.hash and status.checkpoint == run.checkpoint:
        return status
    return status.model_copy(
        update={
            "hash": run.hash,
            "settings": None,  # the newest attempt worked on something else
            "checkpoint": run.checkpoint,
            "metrics": run.metrics,
            "start_time": run.start_time,
            "completion_time": run.completion_time,
            "progress_percent": 100.0,
            "remaining_seconds": None,
            "retry_time": None,
            "faults": 0,
            "disruptions": 0,
        }
    )


def job_phase(job: RLHFJob, assessment: Assessment, stages: Mapping[str, StageStatus]) -> JobPhase:
    """One word for people."""
    verdicts = {decision.verdict for decision in assessment.decisions.values()}
    if verdicts == {"Succeeded"}:
        return "Succeeded"
    if job.spec.suspend:
        return "Suspended"
    if is_stuck(assessment):
        return "Failed"
    started = any(status.start_time for status in stages.values()) or "Running" in verdicts
    return "Running" if started else "Pending"


def is_stuck(assessment: Assessment) -> bool:
    """Whether nothing goes on, and nothing will until somebody changes something."""
    verdicts = {decision.verdict for decision in assessment.decisions.values()}
    return bool(verdicts & {"Failed", "Blocked"}) and verdicts <= {"Succeeded", "Failed", "Blocked"}


def _conditions(job: RLHFJob, assessment: Assessment, now: datetime) -> list[Condition]:
    is_done = all(decision.verdict == "Succeeded" for decision in assessment.decisions.values())
    return conditions(
        assessment.status.conditions,
        decisions=assessment.decisions,
        is_done=is_done,
        is_suspended=job.spec.suspend and not is_done,
        is_stuck=is_stuck(assessment),
        generation=job.metadata.generation,
        now=written(now),
    )


def _completion(status: JobStatus, phase: JobPhase, now: datetime) -> str | None:
    if phase not in ("Succeeded", "Failed"):
        return None
    return status.completion_time or written(now)
