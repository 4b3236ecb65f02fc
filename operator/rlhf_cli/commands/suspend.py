"""rlhfctl suspend: a job saves and gives its devices back, until it is resumed."""

from __future__ import annotations

import argparse
import asyncio

from rlhf_api.status import JobStatus

from rlhf_cli.failures import DONE
from rlhf_cli.output import say, tell_change
from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import Target, parsed
from rlhf_cli.waiting import until, within


def execute(args: argparse.Namespace) -> int:
    """Suspend, and with --wait return once the pods have ended."""
    return asyncio.run(_suspend(args))


async def _suspend(args: argparse.Namespace) -> int:
    async with target_of(args) as target:
        job = parsed(await target.job(args.job))
        tell_change(args.output, job, await target.suspend(job))
        if args.wait:
            await within(args.timeout, pods_ended(target, args.job), "the end of its pods")
            say(args.output, "Its pods have ended.")
    return DONE


async def pods_ended(target: Target, name: str | None) -> None:
    """Returns once no pod of the job can hold a device, and none is about to."""

    async def is_quiet() -> bool:
        job = parsed(await target.job(name))
        if not await target.is_worked_on(job):
            return True
        status = job.status or JobStatus()
        is_seen = status.observed_generation == job.metadata.generation
        is_running = any(stage.phase == "Running" for stage in job.stage_statuses().values())
        pods = await target.pods(job)
        return is_seen and not is_running and all(pod.is_over for pod in pods)

    await until(is_quiet)
