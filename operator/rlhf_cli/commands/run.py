"""rlhfctl run: the whole pipeline on this machine, with progress, a table and a report."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf_api.job import RLHFJob

from rlhf_cli.locations import missing_paths, resolved
from rlhf_cli.manifest import STDIN, Refused, locate, read_job
from rlhf_cli.program import command
from rlhf_cli.run_folder import RunFolder
from rlhf_cli.running import run_here


def execute(args: argparse.Namespace) -> int:
    """Run, and say how it went. The exit code is that of the trainer whose stage failed."""
    job = runnable_job(args.file, args.set)
    folder = RunFolder(args.dir or Path("runs") / job.metadata.name)
    return run_here(job, folder, again(args), args.verbose)


def runnable_job(file: str, overrides: list[str]) -> RLHFJob:
    """The valid job of a manifest, its local paths absolute and there. Raises Failure."""
    job, manifest = read_job(file, overrides)
    job = resolved(job, manifest.folder)
    if missing := list(missing_paths(job)):
        raise Refused(file, locate(missing, manifest.positions))
    return job


def again(args: argparse.Namespace) -> str:
    """The command that goes on with the same run."""
    words = ["run", args.file]
    words += ["--dir", str(args.dir)] if args.dir else []
    for override in args.set:
        words += ["--set", override]
    return command(*words) + (" < MANIFEST" if args.file == STDIN else "")
