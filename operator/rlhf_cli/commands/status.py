"""rlhfctl status: how far a job is, in one table."""

from __future__ import annotations

import argparse
import asyncio
import sys
from datetime import UTC, datetime

from rlhf_cli.failures import DONE
from rlhf_cli.next_steps import next_steps
from rlhf_cli.output import DOCUMENTS
from rlhf_cli.progress.summary import console_for, print_summary
from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import ending, parsed


def execute(args: argparse.Namespace) -> int:
    """Show the status."""
    return asyncio.run(_status(args))


async def _status(args: argparse.Namespace) -> int:
    async with target_of(args) as target:
        item = await target.job(args.job)
        if args.output in DOCUMENTS:
            print(DOCUMENTS[args.output](item), end="")
            return DONE
        job = parsed(item)
        is_alive = await target.is_worked_on(job)
        print_summary(console_for(sys.stdout), job, datetime.now(UTC))
        if not (is_alive or ending(job)):  # what a killed run has written says that it runs
            for step in next_steps(target, job, is_alive=is_alive):
                print(step)
    return DONE
