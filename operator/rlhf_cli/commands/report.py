"""rlhfctl report: report.html of a job, finished or not."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from rlhf_cli.failures import DONE
from rlhf_cli.report.write import write_report
from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import parsed


def execute(args: argparse.Namespace) -> int:
    """Write the report and say where it is."""
    return asyncio.run(_report(args))


async def _report(args: argparse.Namespace) -> int:
    async with target_of(args) as target:
        job = parsed(await target.job(args.job))
        out = Path(args.out) if args.out else None
        if out is None and args.job:
            out = Path(f"{args.job}.html")
        async with target.records(job) as folder:
            print(write_report(folder, out))
    return DONE
