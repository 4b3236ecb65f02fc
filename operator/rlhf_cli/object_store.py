"""What an object store keeps of a run, brought here by the trainer, which speaks to it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from rlhf_api.job import RLHFJob
from rlhf_api.status import CheckpointRef, StageStatus
from rlhf_operator.storage import place_on_volume

from rlhf_cli.failures import Failure
from rlhf_cli.run_folder import RunFolder, lineage_of

RECORDS: Final = ("metrics.jsonl", "samples.jsonl", "versions.json", "data.json")
"""What a report is made of, in the folder of an attempt."""


def bring_records(folder: RunFolder, job: RLHFJob) -> None:
    """Has the run's folder hold what a report is made of. Raises Failure."""
    status = job.status
    if job.spec.checkpoints.uri and status:
        _bring(folder, job, record_patterns(job, status.stages))


def record_patterns(job: RLHFJob, stages: Mapping[str, StageStatus]) -> list[str]:
    """Names of the records of stages, below the volume."""
    lineages = [lineage_of(job, name, stage) for name, stage in stages.items()]
    return [f"{path}/attempt-*/{name}" for path in lineages if path for name in RECORDS]


def bring_checkpoint(folder: RunFolder, job: RLHFJob, checkpoint: CheckpointRef) -> None:
    """Has the run's folder hold a checkpoint. Raises Failure."""
    bring_folder(folder, job, place_on_volume(job, checkpoint))


def bring_folder(folder: RunFolder, job: RLHFJob, place: str) -> None:
    """Has the run's folder hold a folder of the volume. Raises Failure."""
    if job.spec.checkpoints.uri:
        _bring(folder, job, [f"{place}/*"])


def _bring(folder: RunFolder, job: RLHFJob, patterns: Sequence[str]) -> None:
    if not patterns:
        return
    command = [sys.executable, "-m", "rlhf_trainer", "copy"]
    command += [str(job.spec.checkpoints.uri), str(folder.volume(job)), *patterns]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["the trainer is not installed here"]
        raise Failure(said[-1], exit_code=done.returncode)
