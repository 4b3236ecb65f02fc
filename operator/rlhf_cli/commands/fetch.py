"""rlhfctl fetch: the checkpoint of a stage comes to this machine, verified file by file."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from rlhf_cli.failures import DONE
from rlhf_cli.fetching import fetched
from rlhf_cli.models import stage_with_model
from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import parsed


def execute(args: argparse.Namespace) -> int:
    """Fetch, and say where it is."""
    return asyncio.run(_fetch(args))


async def _fetch(args: argparse.Namespace) -> int:
    async with target_of(args) as target:
        job = parsed(await target.job(args.job))
        stage, checkpoint = stage_with_model(job, args.stage, target.place, policies_only=False)
        folder = Path(args.out or f"{job.metadata.name}-{stage}")
        await fetched(target, job, checkpoint, folder)
    print(folder)
    return DONE
