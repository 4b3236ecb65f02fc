"""A checkpoint that comes to this machine: whole and verified under its name, or not there."""

from __future__ import annotations

import shutil
from pathlib import Path

from rlhf_api.job import RLHFJob
from rlhf_api.status import CheckpointRef
from rlhf_operator.names import short

from rlhf_cli.failures import CHECKPOINT, Failure
from rlhf_cli.targets.files import verified
from rlhf_cli.targets.target import Target


async def fetched(target: Target, job: RLHFJob, checkpoint: CheckpointRef, folder: Path) -> None:
    """What is here already of this very checkpoint is not sent again. Raises Failure."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Failure(f"{folder} is not empty: name another folder with --out")
    part = partial(folder, checkpoint)
    part.mkdir(parents=True, exist_ok=True)
    try:
        await target.fetch(job, checkpoint, part)
        verified(part, checkpoint)
    except Failure as failure:
        if failure.exit_code == CHECKPOINT:  # nothing of it is worth going on from
            shutil.rmtree(part)
        raise
    part.replace(folder)


def partial(folder: Path, checkpoint: CheckpointRef) -> Path:
    """Where files are until all are there."""
    return folder.absolute().with_name(f".{folder.name}.{short(checkpoint.digest)}.part")
