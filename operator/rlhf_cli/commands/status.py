"""rlhfctl status: how far a job is, in one table."""

from __future__ import annotations

import argparse
import asyncio
import sys
from datetime import UTC, datetime

from rlhf_cli.failures import DONE
from rlhf_cli.output import DOCUMENTS
from rlhf_cli.progress.summary import console_for, print_summary
from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import parsed


def execute(args: argparse.Namespace) -> int:
    """Show the status."""
    return asyncio.run(_status(args))


async def _status(args: argparse.Namespace) -> int:
    async with target_of(args) as target:
        item = await target.job(args.job)
    if args.output in DOCUMENTS:
        print(DOCUMENTS[args.output](item), end="")
    else:
        print_summary(console_for(sys.stdout), parsed(item), datetime.now(UTC))
    return DONE
