"""rlhfctl delete: a job and all that it made go; its checkpoints only when asked for."""

from __future__ import annotations

import argparse
import asyncio
import sys

from rlhf_cli.failures import DONE, Failure, Unreadable
from rlhf_cli.output import say, tell_change
from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import parsed


def execute(args: argparse.Namespace) -> int:
    """Delete, after a question where checkpoints would be lost."""
    return asyncio.run(_delete(args))


async def _delete(args: argparse.Namespace) -> int:
    async with target_of(args) as target:
        try:
            job = parsed(await target.job(args.job))
        except Unreadable as why:
            said = await target.delete_unread(
                why, with_checkpoints=args.checkpoints, force=args.force
            )
            say(args.output, *said)
            return DONE
        if args.checkpoints and not args.yes:
            _ask(f"Delete {job.metadata.name} and all of its checkpoints?")
        said = await target.delete(
            job, with_checkpoints=args.checkpoints, wait=not args.no_wait, force=args.force
        )
        tell_change(args.output, job, *said)
    return DONE


def _ask(question: str) -> None:
    """Raises Failure unless the answer is yes."""
    if not sys.stdin.isatty():
        raise Failure("deleting checkpoints has to be confirmed: add --yes")
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:  # Ctrl-D
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise Failure("nothing was deleted")
