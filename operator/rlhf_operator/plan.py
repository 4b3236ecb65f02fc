"""What to do next for a job. Pure: no I/O and no clock; the same inputs give the same actions.

    observed ──► settle: ends are counted ──► decide: stage by stage, parents first ──► actions

`next_status` in status.py takes the same assessment, so what is done and what is said agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from rlhf_api.job import RLHFJob
from rlhf_api.run import PREPARE
from rlhf_api.status import FinishedRun, JobStatus, StageStatus

from rlhf_operator.decisions import Context, Decision
from rlhf_operator.ends import Look
from rlhf_operator.expiry import expiry
from rlhf_operator.images import wanted_of
from rlhf_operator.inputs import Wanted, input_hash, prepare_hash
from rlhf_operator.observed import Attempt, Observed, numbered
from rlhf_operator.pausing import pause_of
from rlhf_operator.policies import decide, finished_run, is_prepared
from rlhf_operator.settle import is_under_way, settled
from rlhf_operator.storage import moved_storage


class BeginAttempt(NamedTuple):
    """Write a new attempt's number to the status; its children are made in a later pass."""

    stage: str
    attempt: int
    hash: str
    settings: str


class CreateChildren(NamedTuple):
    """Apply the children of an attempt that the status names."""

    stage: str
    attempt: int
    hash: str
    settings: str


class DeleteChildren(NamedTuple):
    """Delete an attempt's children; its pods get their grace period to save."""

    stage: str
    attempt: int
    reason: str


Action = BeginAttempt | CreateChildren | DeleteChildren


class Assessment(NamedTuple):
    """A job as it stands: the status with ends counted, and what each stage is to do."""

    job: RLHFJob
    observed: Observed
    now: datetime
    status: JobStatus
    wanted: Mapping[str, Wanted | None]
    decisions: Mapping[str, Decision]  # prepare first, then the job's stages in their order
    runs: Mapping[str, FinishedRun]  # the result that counts, for each stage that has one


def plan(assessment: Assessment) -> list[Action]:
    """The next actions; none where nothing is to be done."""
    job, observed = assessment.job, assessment.observed
    if moved_storage(job):
        return []
    actions: list[Action] = []
    for stage, status in assessment.status.every_stage().items():
        decision = assessment.decisions.get(stage)
        actions += _deletions(stage, status, decision, observed)
        actions += _expired(job, stage, observed, assessment.now)
        wanted = assessment.wanted.get(stage)
        if decision and wanted and decision.verdict == "Begin":
            actions.append(BeginAttempt(stage, status.attempt + 1, *wanted))
        if decision and wanted and _needs_children(decision, status, observed.of(stage)):
            actions.append(CreateChildren(stage, status.attempt, *wanted))
    return actions


def assess(job: RLHFJob, observed: Observed, now: datetime) -> Assessment:
    """Decides stage by stage, each after those whose output it takes.

    `now` must know its time zone.
    """
    status = settled(Look(job, now), observed)
    wanted: dict[str, Wanted | None] = {}
    decisions: dict[str, Decision] = {}
    runs: dict[str, FinishedRun] = {}
    so_far = Assessment(job, observed, now, status, wanted, decisions, runs)
    for stage in [PREPARE, *job.spec.stages.present()]:
        wanted[stage] = _wanted(so_far, stage)
        decisions[stage] = decide(_context(so_far, stage))
        run = finished_run(status.of(stage), wanted[stage])
        if run and decisions[stage].verdict == "Succeeded":
            runs[stage] = run
    return so_far


def _needs_children(decision: Decision, status: StageStatus, attempts: Sequence[Attempt]) -> bool:
    """Whether the attempt under way misses a child, or has one that somebody has changed."""
    newest = numbered(attempts, status.attempt)
    if newest is None:
        return decision.verdict == "Create"
    return decision.verdict in ("Create", "Pending", "Running") and not newest.is_whole


def _wanted(so_far: Assessment, stage: str) -> Wanted | None:
    """None before what it is made from is there: sources that are known, outputs of its parents."""
    job, status, observed, runs = so_far.job, so_far.status, so_far.observed, so_far.runs
    before = status.of(stage)
    if stage == PREPARE:
        return wanted_of(job, stage, before, lambda it: prepare_hash(it, observed.fingerprints))
    needed = set(job.spec.stages.parents(stage).values())
    if not _sources_are_known(so_far) or not needed <= set(runs):
        return None
    outputs = {parent: runs[parent].checkpoint.digest for parent in needed}
    return wanted_of(job, stage, before, lambda it: input_hash(it, stage, status.sources, outputs))


def _sources_are_known(so_far: Assessment) -> bool:
    return is_prepared(so_far.status.of(PREPARE), so_far.wanted[PREPARE])


def _context(so_far: Assessment, stage: str) -> Context:
    job, observed = so_far.job, so_far.observed
    of_stage = stage != PREPARE
    needed = list(dict.fromkeys(job.spec.stages.parents(stage).values())) if of_stage else []
    return Context(
        job=job,
        stage=stage,
        status=so_far.status.of(stage),
        attempts=observed.of(stage),
        sources_are_known=_sources_are_known(so_far),
        wanted=so_far.wanted[stage],
        parents={name: so_far.decisions[name] for name in needed},
        parent_runs={name: so_far.runs[name] for name in needed if name in so_far.runs},
        prepare=so_far.decisions[PREPARE] if of_stage else None,
        pause=pause_of(job, observed),
        directory=observed.directory,
        now=so_far.now,
    )


def _deletions(
    stage: str,
    status: StageStatus,
    decision: Decision | None,
    observed: Observed,
) -> Iterator[DeleteChildren]:
    """Children that are of no use: superseded, called off, or of a stage that was removed.

    The children of the newest attempt that ended by itself stay, so that its logs can be read. What
    is left of an attempt without Job and pods goes, unless that attempt is only about to start.
    Pods that somebody has left without their Job go in any case: nothing else would ever end them,
    and they hold devices that nobody sees.
    """
    stays = is_under_way(status) and decision is not None and decision.verdict != "Stop"
    for attempt in observed.of(stage):
        if attempt.is_orphaned:
            yield DeleteChildren(stage, attempt.number, "Orphaned")
        if attempt.is_terminating or (stays and attempt.number == status.attempt):
            continue
        if attempt.number != status.attempt:
            yield DeleteChildren(stage, attempt.number, "Superseded")
        elif is_under_way(status):
            reason = decision.reason if decision else "StageRemoved"
            yield DeleteChildren(stage, attempt.number, reason)
        elif attempt.is_live or not attempt.has_ended:
            yield DeleteChildren(stage, attempt.number, "Ended")
    for of, number in observed.left_over:
        if of == stage and not (stays and number == status.attempt):
            yield DeleteChildren(stage, number, "Superseded")


def _expired(
    job: RLHFJob, stage: str, observed: Observed, now: datetime
) -> Iterator[DeleteChildren]:
    """Children of an attempt whose end has been written down for long enough."""
    status = (job.status or JobStatus()).of(stage)
    due = expiry(job, status, observed.of(stage))
    if due and due <= now and status.ended:
        yield DeleteChildren(stage, status.ended.attempt, "Expired")
