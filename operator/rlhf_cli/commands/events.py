"""rlhfctl events: what has happened to a job and its pods; with -w what happens next."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from rlhf_api.job import RLHFJob

from rlhf_cli.description import events_table
from rlhf_cli.failures import DONE
from rlhf_cli.progress.summary import console_for
from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import Happening, Target, parsed


def execute(args: argparse.Namespace) -> int:
    """Print them, oldest first."""
    return asyncio.run(_events(args))


async def _events(args: argparse.Namespace) -> int:
    async with target_of(args) as target:
        job = parsed(await target.job(args.job))
        if args.watch:
            await _watch(target, job, args.output)
        elif found := await target.events(job):
            _print(found, args.output, with_heading=True)
        else:
            why = "" if target.is_one_job else ": a cluster keeps them for an hour"
            print(f"No events of {job.metadata.name}{why}.", file=sys.stderr)
    return DONE


async def _watch(target: Target, job: RLHFJob, form: str) -> None:
    seen: set[Happening] = set()
    async for events in target.follow_events(job):
        if found := [item for item in events if item not in seen]:
            _print(found, form, with_heading=not seen)
            seen |= set(found)


def _print(found: Sequence[Happening], form: str, *, with_heading: bool) -> None:
    if form == "json":
        for item in found:
            print(json.dumps(item._asdict(), ensure_ascii=False), flush=True)
        return
    console = console_for(sys.stdout)
    for line in events_table(found, datetime.now(UTC))[0 if with_heading else 1 :]:
        console.print(line, soft_wrap=True)
