"""rlhfctl events: what has happened to a job and its pods; with -w what happens next."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from rlhf_cli.description import events_table
from rlhf_cli.failures import DONE
from rlhf_cli.progress.summary import console_for
from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import Happening, parsed

LOOK_EVERY: Final = 2.0


def execute(args: argparse.Namespace) -> int:
    """Print them, oldest first."""
    return asyncio.run(_events(args))


async def _events(args: argparse.Namespace) -> int:
    seen: set[Happening] = set()
    async with target_of(args) as target:
        while True:
            job = parsed(await target.job(args.job))
            is_last = not (args.watch and await target.is_worked_on(job))
            found = [item for item in await target.events(job) if item not in seen]
            if not (found or seen or args.watch):
                print(
                    f"No events of {job.metadata.name}: a cluster keeps them for an hour.",
                    file=sys.stderr,
                )
            if found:
                _print(found, args.output, with_heading=not seen)
            seen |= set(found)
            if is_last:
                return DONE
            await asyncio.sleep(LOOK_EVERY)


def _print(found: Sequence[Happening], form: str, *, with_heading: bool) -> None:
    if form == "json":
        for item in found:
            print(json.dumps(item._asdict(), ensure_ascii=False), flush=True)
        return
    console = console_for(sys.stdout)
    for line in events_table(found, datetime.now(UTC))[0 if with_heading else 1 :]:
        console.print(line, soft_wrap=True)
