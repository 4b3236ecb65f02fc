"""What to say of a job after a pass: phases and conditions, by the assessment the plan acts on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from rlhf_api.job import RLHFJob
from rlhf_api.run import PREPARE
from rlhf_api.status import FinishedRun, JobPhase, JobStatus, StagePhase, StageStatus

from rlhf_operator import pausing
from rlhf_operator.columns import UNDER_WAY, columns
from rlhf_operator.conditions import State, conditions, job_state, with_conditions
from rlhf_operator.decisions import Decision, Verdict
from rlhf_operator.ends import Look, retry_is_asked, stopped
from rlhf_operator.images import image_of
from rlhf_operator.inputs import Wanted
from rlhf_operator.messages import redacted
from rlhf_operator.pausing import pause_of
from rlhf_operator.plan import Action, Assessment, BeginAttempt
from rlhf_operator.settle import is_under_way
from rlhf_operator.storage import location, moved_storage
from rlhf_operator.times import written
from rlhf_operator.waiting import UNPLACED

PHASES: Final[Mapping[str, StagePhase]] = {
    "Succeeded": "Succeeded",
    "Begin": "Pending",
    "Create": "Pending",
    "Pending": "Pending",
    "Running": "Running",
    "Stop": "Pending",
    "Waiting": "Waiting",
    "Blocked": "Waiting",
    "Failed": "Failed",
}


def next_status(assessment: Assessment, actions: Sequence[Action]) -> JobStatus:
    """The whole status that one write puts in place of the old one.

    An attempt is written down exactly where `actions` begins it, so that its number stands in the
    status before its children exist.
    """
    job, now = assessment.job, assessment.now
    if said := moved_storage(job):
        return _stalled(
            job, assessment.status, State("Stalled", "ImmutableFieldChanged", said), now
        )
    begun = {action.stage: action for action in actions if isinstance(action, BeginAttempt)}
    stages = {
        name: _stage(Look(job, now), name, assessment, begun.get(name))
        for name in _in_order(job, assessment.status)
    }
    phase = job_phase(job, assessment, stages)
    before = assessment.status
    pause = pause_of(job, assessment.observed)
    state = job_state(assessment.decisions, pause=pause, is_stuck=is_stuck(assessment))
    return before.model_copy(
        update={
            "observed_generation": job.metadata.generation,
            "phase": phase,
            **columns(assessment.decisions, stages),
            "scheduling": assessment.observed.scheduling or before.scheduling,
            "storage": before.storage or (location(job) if begun else None),
            "prepare": stages.pop(PREPARE),
            "stages": stages,
            "conditions": conditions(
                before.conditions,
                state,
                assessment.decisions,
                generation=job.metadata.generation,
                now=written(now),
            ),
            "start_time": before.start_time or (written(now) if begun else None),
            "completion_time": _completion(before, phase, now),
        }
    )


def _stalled(job: RLHFJob, status: JobStatus, state: State, now: datetime) -> JobStatus:
    """Nothing is done before somebody changes the spec; what runs goes on."""
    generation = job.metadata.generation
    found = with_conditions(status.conditions, state, generation=generation, now=written(now))
    return status.model_copy(
        update={"observed_generation": generation, "phase": "Failed", "conditions": found}
    )


def _in_order(job: RLHFJob, status: JobStatus) -> list[str]:
    """The spec's stages first; those that were removed keep their history, and their numbers."""
    present = list(job.spec.stages.present())
    return [PREPARE, *present, *(name for name in status.stages if name not in present)]


def _stage(
    look: Look, stage: str, assessment: Assessment, begin: BeginAttempt | None
) -> StageStatus:
    status = assessment.status.of(stage)
    decision = assessment.decisions.get(stage) or _removed(status)
    if begin:
        status = _begun(look.job, status, begin, assessment.observed.image)
    elif decision.verdict == "Stop":
        status = stopped(look, stage, status, decision.reason)
    elif run := assessment.runs.get(stage):
        status = _with_result(status, run)
    phase = _paused(decision) or PHASES[decision.verdict]
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


def _paused(decision: Decision) -> StagePhase | None:
    return "Suspended" if decision.reason in pausing.REASONS else None


def _begun(
    job: RLHFJob, status: StageStatus, begin: BeginAttempt, default: str | None
) -> StageStatus:
    """A fresh attempt; counts start again where inputs or settings are new, or a person asks.

    `default`: image of jobs that name none.
    """
    restarts, before = dict(status.restarts), status.ended
    if before and before.kind != "Done":
        restarts[before.kind] = restarts.get(before.kind, 0) + 1
    update: dict[str, Any] = {
        "attempt": begin.attempt,
        "hash": begin.hash,
        "settings": begin.settings,
        "image": image_of(job, begin.stage, default),
        "gpus": _gpus(job, begin.stage),
        "restarts": restarts,
        "start_time": None,
        "timeline": None,
        "completion_time": None,
        "retry_time": None,
        "progress_percent": None,
        "remaining_seconds": None,
        "metrics": {},
        "checkpoint": None,
    }
    is_new = Wanted(begin.hash, begin.settings) != (status.hash, status.settings)
    if is_new or retry_is_asked(job, begin.stage, status):
        update |= {"faults": 0, "disruptions": 0}
    if begin.hash != status.hash:
        update["saved"] = None
    return status.model_copy(update=update)


def _gpus(job: RLHFJob, stage: str) -> int:
    """Devices that a stage's gang asks for."""
    if stage not in job.spec.stages.present():
        return 0
    resources = job.spec.resources_of(stage)
    return resources.nodes * resources.gpus_per_node


def _with_result(status: StageStatus, run: FinishedRun) -> StageStatus:
    """Shows the result that counts, also where an older attempt reached it on these inputs."""
    if status.hash == run.hash and status.checkpoint == run.checkpoint:
        return status
    return status.model_copy(
        update={
            "hash": run.hash,
            "settings": None,  # the newest attempt worked on something else
            "image": run.image,
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
    """One word for people. Waiting: it has begun, and no stage goes on, or is about to."""
    verdicts = {decision.verdict for decision in assessment.decisions.values()}
    if verdicts == {"Succeeded"}:
        return "Succeeded"
    if pause_of(job, assessment.observed):
        return "Suspended"
    if is_stuck(assessment):
        return "Failed"
    if not any(status.start_time for status in stages.values()):
        return "Pending"
    return "Running" if any(map(_goes_on, assessment.decisions.values())) else "Waiting"


def _goes_on(decision: Decision) -> bool:
    return decision.verdict in UNDER_WAY and decision.reason not in UNPLACED


def is_stuck(assessment: Assessment) -> bool:
    """Whether nothing goes on, and nothing will until somebody changes something."""
    verdicts = {decision.verdict for decision in assessment.decisions.values()}
    return bool(verdicts & {"Failed", "Blocked"}) and verdicts <= {"Succeeded", "Failed", "Blocked"}


def _completion(status: JobStatus, phase: JobPhase, now: datetime) -> str | None:
    if phase not in ("Succeeded", "Failed"):
        return None
    return status.completion_time or written(now)
