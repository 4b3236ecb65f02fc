"""rlhfctl watch: a job, live, until it is done or cannot go on."""

from __future__ import annotations

import argparse
import asyncio

from rlhf_cli.follow import follow
from rlhf_cli.targets.resolve import target_of


def execute(args: argparse.Namespace) -> int:
    """Follow it; the exit code says how it ended."""
    return asyncio.run(_watch(args))


async def _watch(args: argparse.Namespace) -> int:
    async with target_of(args) as target:
        return await follow(target, args.job, args.timeout)
