"""rlhfctl cancel: stop a job, and return when its devices are free."""

from __future__ import annotations

import argparse
import asyncio

from rlhf_cli.commands.suspend import pods_ended
from rlhf_cli.failures import DONE
from rlhf_cli.output import say, tell_change
from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import parsed
from rlhf_cli.waiting import within


def execute(args: argparse.Namespace) -> int:
    """Suspend it, wait for its pods, and say what is left."""
    return asyncio.run(_cancel(args))


async def _cancel(args: argparse.Namespace) -> int:
    async with target_of(args) as target:
        job = parsed(await target.job(args.job))
        name = job.metadata.name
        said = await target.suspend(job)  # first: else the operator begins another attempt
        if args.now:
            await target.kill(job)
        if await target.is_worked_on(job):
            say(args.output, said)
        await within(args.timeout, pods_ended(target, args.job), "the end of its pods")
        tell_change(
            *(args.output, job),
            f"{name} is stopped; its results and checkpoints are kept.",
            f"To go on: {target.command('resume', job=name)}",
            f"To remove it: {target.command('delete', job=name)}",
        )
    return DONE
