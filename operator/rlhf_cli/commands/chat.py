"""rlhfctl chat: talk to a model of a job. The trainer does the talking, in a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf_api.job import RLHFJob

from rlhf_cli.failures import CHECKPOINT, Failure
from rlhf_cli.fetching import fetched
from rlhf_cli.models import base_model, stage_with_model
from rlhf_cli.object_store import bring_checkpoint
from rlhf_cli.targets.directory import Directory
from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import Target, parsed


def execute(args: argparse.Namespace) -> int:
    """Start the chat and return its exit code."""
    path, stop = asyncio.run(_model(args))
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the chat, which gets it, too
    command = [sys.executable, "-m", "rlhf_trainer", "chat", str(path)]
    return subprocess.call(command + [f"--stop={text}" for text in stop])


async def _model(args: argparse.Namespace) -> tuple[Path, Sequence[str]]:
    """The folder of the model to talk to, and what ends its answers in the job's evaluation. Raises
    Failure where it is not there.
    """
    async with target_of(args) as target:
        job = parsed(await target.job(args.job))
        evaluation = job.spec.evaluation
        stop = (evaluation.stop if evaluation is not None else None) or ()
        return await _folder(args, target, job), stop


async def _folder(args: argparse.Namespace, target: Target, job: RLHFJob) -> Path:
    """Where the model of the stage lies, or of the base; brought here from a cluster."""
    if args.stage == "base":
        if not isinstance(target, Directory):
            raise Failure(
                "the base model of a job on a cluster is not brought to this machine",
                f"get it from {job.spec.model.source}, or name another --stage",
            )
        return base_model(target.folder, job)
    stage, checkpoint = stage_with_model(job, args.stage, target.place)
    if isinstance(target, Directory):
        bring_checkpoint(target.folder, job, checkpoint)
        path = target.folder.checkpoint(job, checkpoint)
        if not path.is_dir():
            raise Failure(f"{path} is gone; run the manifest again", exit_code=CHECKPOINT)
        return path
    folder = Path(f"{job.metadata.name}-{stage}")
    if not (folder / "manifest.json").exists():
        print(f"Fetching the model of {stage} to {folder} …", file=sys.stderr)
        await fetched(target, job, checkpoint, folder)
    return folder
