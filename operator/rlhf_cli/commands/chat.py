"""rlhfctl chat: talk to a model of a run. The trainer does the talking, in a process of its own."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from rlhf_api.job import RLHFJob
from rlhf_operator.render.volumes import CHECKPOINTS, fetched_path

from rlhf_cli.failures import Failure
from rlhf_cli.locations import is_local
from rlhf_cli.run_folder import RunFolder

NEWEST_FIRST: Final = ("ppo", "dpo", "sft")


def execute(args: argparse.Namespace) -> int:
    """Start the chat and return its exit code."""
    folder = RunFolder(args.dir)
    path = model_path(folder, folder.job(), args.stage)
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the chat, which gets it, too
    return subprocess.call([sys.executable, "-m", "rlhf_trainer", "chat", str(path)])


def model_path(folder: RunFolder, job: RLHFJob, stage: str | None) -> Path:
    """The folder of the model to talk to. Raises Failure where it is not there."""
    outputs = _outputs(folder, job)
    if stage == "base":
        return _base(folder, job)
    if stage is None:
        stage = next((name for name in NEWEST_FIRST if name in outputs), None)
    if stage is None:
        raise Failure(
            f"{folder.path} holds no trained model yet; see 'rlhfctl status {folder.path}'"
        )
    if stage not in outputs:
        there = ", ".join(["base", *outputs])
        raise Failure(f"{folder.path} holds no model of the stage {stage}; there are: {there}")
    if not outputs[stage].is_dir():
        raise Failure(f"{outputs[stage]} is gone; run the manifest again", exit_code=65)
    return outputs[stage]


def _outputs(folder: RunFolder, job: RLHFJob) -> dict[str, Path]:
    stages = job.status.stages if job.status else {}
    return {
        name: folder.checkpoint(job, ref)
        for name in reversed(NEWEST_FIRST)
        if name in stages and (ref := stages[name].checkpoint)
    }


def _base(folder: RunFolder, job: RLHFJob) -> Path:
    model = job.spec.model
    if model.init == "random":
        raise Failure("the base model of this run has random weights; there is nothing to talk to")
    fetched = fetched_path(model.source, model.revision).removeprefix(f"{CHECKPOINTS}/")
    path = Path(model.source) if is_local(model.source) else folder.volume(job) / fetched
    if not path.is_dir():
        raise Failure(f"the base model is not there: {path}")
    return path
