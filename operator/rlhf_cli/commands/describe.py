"""rlhfctl describe: all that is known of a job, and what to do next."""

from __future__ import annotations

import argparse
import asyncio
import sys
from datetime import UTC, datetime

from rlhf_cli.description import description
from rlhf_cli.failures import DONE
from rlhf_cli.progress.summary import console_for
from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import parsed


def execute(args: argparse.Namespace) -> int:
    """Print it."""
    return asyncio.run(_describe(args))


async def _describe(args: argparse.Namespace) -> int:
    async with target_of(args) as target:
        item = await target.job(args.job)
        job = parsed(item)
        known = (await target.pods(job), await target.events(job))
        is_alive = await target.is_worked_on(job)
        lines = description(target, item, job, *known, datetime.now(UTC), is_alive=is_alive)
        console = console_for(sys.stdout)
        for line in lines:
            console.print(line, soft_wrap=True)
    return DONE
