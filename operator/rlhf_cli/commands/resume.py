"""rlhfctl resume: a suspended job goes on; a run on this machine does so in the foreground."""

from __future__ import annotations

import argparse
import asyncio

from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import Afterwards, parsed


def execute(args: argparse.Namespace) -> int:
    """Let it go on."""
    return asyncio.run(_resume(args))()


async def _resume(args: argparse.Namespace) -> Afterwards:
    async with target_of(args) as target:
        return await target.resume(parsed(await target.job(args.job)))
