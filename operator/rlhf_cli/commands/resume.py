"""rlhfctl resume: a suspended job goes on; a run on this machine does so in the foreground."""

from __future__ import annotations

import argparse
import asyncio

from rlhf_cli.output import tell_change, told_aside
from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import Going, parsed


def execute(args: argparse.Namespace) -> int:
    """Let it go on."""
    return told_aside(args.output, asyncio.run(_resume(args)).afterwards)


async def _resume(args: argparse.Namespace) -> Going:
    async with target_of(args) as target:
        job = parsed(await target.job(args.job))
        going = await target.resume(job)
        tell_change(args.output, job, going.said)
    return going
