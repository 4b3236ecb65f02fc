"""rlhfctl describe: all that is known of a job, and what to do next."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

from rlhf_cli.description import description
from rlhf_cli.failures import DENIED, DONE, Failure
from rlhf_cli.progress.summary import console_for
from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import parsed

T = TypeVar("T")


def execute(args: argparse.Namespace) -> int:
    """Print it."""
    return asyncio.run(_describe(args))


async def _describe(args: argparse.Namespace) -> int:
    async with target_of(args) as target:
        item = await target.job(args.job)
        job = parsed(item)
        pods = await _if_allowed(target.pods(job), "pods")
        events = await _if_allowed(target.events(job), "events")
        is_alive = await target.is_worked_on(job)
        lines = description(target, item, job, pods, events, datetime.now(UTC), is_alive=is_alive)
        console = console_for(sys.stdout)
        for line in lines:
            console.print(line, soft_wrap=True)
    return DONE


async def _if_allowed(look: Coroutine[Any, Any, list[T]], what: str) -> list[T]:
    """The job is told also to who may read nothing else. Raises any other Failure."""
    try:
        return await look
    except Failure as failure:
        if failure.exit_code != DENIED:
            raise
        print(f"Without its {what}: {failure.lines[0]}", file=sys.stderr)
        return []
