"""The one place that decides what a command line points at."""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from rlhf_api.job import GROUP, KIND, PLURAL

from rlhf_cli.failures import Failure
from rlhf_cli.program import program
from rlhf_cli.run_folder import hint_of_a_run
from rlhf_cli.targets.target import Target


@asynccontextmanager
async def target_of(args: argparse.Namespace) -> AsyncIterator[Target]:
    """A directory where --dir names one, or JOB has a slash in it; else a cluster.

    `args.job` is then the name of the job; None for the one job of a directory.
    """
    if getattr(args, "job", None):
        args.job = _without_kind(args.job)
    directory = directory_of(args)
    if directory is not None:
        from rlhf_cli.targets.directory import Directory

        args.job = None
        yield Directory(directory)
        return
    from rlhf_cli.targets.connection import Access, connected

    if getattr(args, "job", "") is None and not getattr(args, "job_is_optional", False):
        raise Failure(
            f"name an RLHFJob: {program()} {args.command} JOB",
            f"or a run on this machine: {program()} {args.command} --dir DIR",
        )
    async with AsyncExitStack() as ends:
        try:
            cluster = await ends.enter_async_context(connected(Access.of(args)))
        except Failure as failure:
            hint = hint_of_a_run(getattr(args, "job", None) or "")
            raise Failure(*failure.lines, *hint, exit_code=failure.exit_code) from None
        yield cluster


def _without_kind(job: str) -> str:
    """The name in `rlhfjob.rlhf.dev/NAME`, as `-o name` prints it, or in any form that kubectl has.

    A directory of such a path is reached with --dir.
    """
    kind, _, name = job.partition("/")
    is_kind = kind.removesuffix(f".{GROUP}") in (KIND.lower(), PLURAL)
    return name if is_kind and name and "/" not in name else job


def directory_of(args: argparse.Namespace) -> str | None:
    """The directory that is meant; None where it is a cluster. Raises Failure."""
    job = getattr(args, "job", None)
    if args.dir is not None:
        if job is not None:
            raise Failure(
                f"{job} is a job on a cluster, and --dir names a run on this machine: "
                f"leave out {job} or --dir"
            )
        return str(args.dir)
    if job is not None and (os.sep in job or job in (".", "..")):
        return str(job)
    return None
