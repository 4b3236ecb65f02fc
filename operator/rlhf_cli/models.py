"""Which models a job has made, and where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rlhf_api.job import RLHFJob
from rlhf_api.status import CheckpointRef
from rlhf_operator.render.volumes import CHECKPOINTS, fetched_path

from rlhf_cli.failures import Failure
from rlhf_cli.locations import is_local
from rlhf_cli.object_store import bring_folder
from rlhf_cli.run_folder import RunFolder

NEWEST_FIRST: Final = ("ppo", "dpo", "sft")


def stage_with_model(
    job: RLHFJob, stage: str | None, place: str, *, policies_only: bool = True
) -> tuple[str, CheckpointRef]:
    """A stage and its output; without a name, that of the last stage. Raises Failure."""
    found = job.status.stages if job.status else {}
    outputs = {name: item.checkpoint for name, item in found.items() if item.checkpoint}
    if stage is None:
        stage = next((name for name in NEWEST_FIRST if name in outputs), None)
    if stage is None:
        raise Failure(f"{job.metadata.name} in {place} has no trained model yet")
    if stage not in outputs or (policies_only and stage not in NEWEST_FIRST):
        there = ", ".join(name for name in outputs if not policies_only or name in NEWEST_FIRST)
        raise Failure(
            f"{job.metadata.name} in {place} has no model of the stage {stage}; there are: "
            f"{there or 'none'}"
        )
    return stage, outputs[stage]


def base_model(folder: RunFolder, job: RLHFJob) -> Path:
    """The folder of the base model of a run. Raises Failure where it is not there."""
    model = job.spec.model
    if model.init == "random":
        raise Failure("the base model of this run has random weights; there is nothing to talk to")
    fetched = fetched_path(model.source, model.revision).removeprefix(f"{CHECKPOINTS}/")
    if is_local(model.source):
        path = Path(model.source)
    else:
        bring_folder(folder, job, fetched)
        path = folder.volume(job) / fetched
    if not path.is_dir():
        raise Failure(f"the base model is not there: {path}")
    return path
