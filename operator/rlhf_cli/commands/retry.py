"""rlhfctl retry: stages that failed for good get another try, with a fresh budget."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

from rlhf_api.job import RLHFJob

from rlhf_cli.failures import Failure
from rlhf_cli.output import tell_change, told_aside
from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import Going, parsed


def execute(args: argparse.Namespace) -> int:
    """Try again."""
    return told_aside(args.output, asyncio.run(_retry(args)).afterwards)


async def _retry(args: argparse.Namespace) -> Going:
    async with target_of(args) as target:
        job = parsed(await target.job(args.job))
        going = await target.retry(job, to_retry(job, args.stage))
        tell_change(args.output, job, going.said)
    return going


def to_retry(job: RLHFJob, asked: Sequence[str]) -> list[str]:
    """The stages that get another try: those asked for, or all that failed. Raises Failure."""
    stages, name = job.stage_statuses(), job.metadata.name
    failed = [stage for stage, item in stages.items() if may_be_retried(item.phase, item.reason)]
    for stage in asked:
        if stage not in stages:
            raise Failure(f"{name} has no stage {stage}; it has {', '.join(stages)}")
        if stage not in failed:
            raise Failure(
                f"{stage} of {name} has not failed: it is {stages[stage].phase}",
                f"stages that have: {', '.join(failed) or 'none'}",
            )
    if not failed:
        raise Failure(
            f"no stage of {name} has failed",
            "to train a stage again, change its settings; to pick up changed data, see the "
            "annotation rlhf.dev/refresh",
        )
    return list(asked) or failed


def may_be_retried(phase: str, reason: str | None) -> bool:
    """Failed for good, or in the pause before the next attempt."""
    return phase == "Failed" or reason == "BackingOff"
