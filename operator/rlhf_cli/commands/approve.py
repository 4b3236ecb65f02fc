"""rlhfctl approve: a person lets the stages behind a gate take GPUs."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator

from rlhf_api.job import RLHFJob
from rlhf_api.status import JobStatus, StageStatus
from rlhf_operator.inputs import annotation
from rlhf_operator.names import ANNOTATION_APPROVE, short

from rlhf_cli.failures import DONE, FAILED, TRANSIENT, Failure
from rlhf_cli.figures import figure_text
from rlhf_cli.output import say, tell_change
from rlhf_cli.program import program
from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import parsed

MOST_METRICS = 12


def execute(args: argparse.Namespace) -> int:
    """Say what is approved, and approve it."""
    if args.job is None and args.dir is None:
        raise Failure(
            f"name the RLHFJob and the stage: {program()} approve JOB STAGE",
            f"or the stage of a run on this machine: {program()} approve STAGE --dir DIR",
        )
    return asyncio.run(_approve(args))


async def _approve(args: argparse.Namespace) -> int:
    async with target_of(args) as target:
        job = parsed(await target.job(args.job))
        name = job.metadata.name
        otherwise = f"follow it: {target.command('watch', job=name)}"
        result = result_to_approve(job, args.stage, otherwise)
        say(args.output, *described(job, args.stage, result))
        key, value = f"{ANNOTATION_APPROVE}{args.stage}", short(result.hash or "")
        if short(annotation(job, key) or "") == value:
            tell_change(args.output, job, "It is approved already.")
            return DONE
        await target.annotate(job, {key: value})
        tell_change(args.output, job, *effect(job, args.stage))
        if not await target.is_worked_on(job):
            say(args.output, f"To go on: {target.command('resume', job=name)}")
    return DONE


def effect(job: RLHFJob, stage: str) -> Iterator[str]:
    """What the approval does, in lines."""
    yield f"Approved: {' and '.join(job.spec.stages.followers(stage))} may start."
    yield from held_back(job, stage)


def result_to_approve(job: RLHFJob, stage: str, otherwise: str) -> StageStatus:
    """The result of a stage that a person is to look at.

    Raises Failure where there is none; `otherwise` is what to do where there is none yet.
    """
    name, stages = job.metadata.name, job.spec.stages.present()
    if stage not in stages:
        raise Failure(f"{name} has no stage {stage}; its stages are {', '.join(stages)}")
    gate = stages[stage].gate
    if gate is None or not gate.approval:
        asked = [other for other, item in stages.items() if item.gate and item.gate.approval]
        raise Failure(
            f"{stage} of {name} needs no approval: spec.stages.{stage}.gate.approval is not true",
            f"stages that need one: {', '.join(asked) or 'none'}",
        )
    if not job.spec.stages.followers(stage):
        raise Failure(f"no stage of {name} takes the output of {stage}: nothing waits for it")
    status = job.status or JobStatus()
    found = status.stages.get(stage) or StageStatus()
    if status.observed_generation != job.metadata.generation:
        raise Failure(
            f"the operator has not looked at the newest version of {name} yet: run again",
            exit_code=TRANSIENT,
        )
    if found.phase == "Failed":
        said = f": {found.message}" if found.message else ""
        raise Failure(f"{stage} of {name} has failed{said}", exit_code=FAILED)
    if found.phase != "Succeeded" or not found.checkpoint or not found.hash:
        why = f" ({found.message})" if found.message else ""
        raise Failure(
            f"{stage} of {name} has no result yet; it is {found.phase}{why}",
            otherwise,
            exit_code=TRANSIENT,
        )
    return found


def described(job: RLHFJob, stage: str, result: StageStatus) -> Iterator[str]:
    """The result, in lines: what a person has to know who answers for it."""
    yield f"{stage} of {job.metadata.name}, result {short(result.hash or '')}"
    for name in _told_metrics(job, stage, result):
        yield f"  {name:24} {figure_text(result.metrics[name])}"
    if result.checkpoint:
        yield f"  {'checkpoint':24} {result.checkpoint.uri}"
        yield f"  {'digest':24} {result.checkpoint.digest}"


def _told_metrics(job: RLHFJob, stage: str, result: StageStatus) -> list[str]:
    """The gate's own first, then evaluations, then the rest."""
    gate = job.spec.stages.present()[stage].gate
    own = gate.metric if gate else None
    rank = {True: 0, False: 1}
    names = sorted(
        result.metrics, key=lambda name: (rank[name == own], rank[name.startswith("eval/")], name)
    )
    return names[:MOST_METRICS]


def held_back(job: RLHFJob, stage: str) -> Iterator[str]:
    """What approval does not change."""
    status = job.status or JobStatus()
    if job.spec.suspend:
        yield f"{job.metadata.name} is suspended: nothing starts until spec.suspend is false."
    for name in job.spec.stages.followers(stage):
        follower = status.stages.get(name)
        if follower and follower.reason == "GateNotMet":
            yield f"{name} is held back all the same: {follower.message}"
