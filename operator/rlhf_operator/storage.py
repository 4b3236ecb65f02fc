"""Where a job's checkpoints are. Once there are some, they must not move: nothing would be found.

Admission refuses such an edit; where it was bypassed, this says so, and nothing is touched.
"""

from __future__ import annotations

from rlhf_api.job import RLHFJob
from rlhf_api.status import CheckpointRef

from rlhf_operator.names import claim_name


def location(job: RLHFJob) -> str:
    """The place that spec.checkpoints names, as one word."""
    checkpoints = job.spec.checkpoints
    if checkpoints.uri:
        return checkpoints.uri
    return "/".join(filter(None, (f"pvc://{claim_name(job)}", checkpoints.sub_path)))


def place_on_volume(job: RLHFJob, checkpoint: CheckpointRef) -> str:
    """Where a checkpoint is below the volume; in an object store, below spec.checkpoints.uri."""
    store = job.spec.checkpoints.uri
    return checkpoint.uri.removeprefix(f"{store.rstrip('/')}/") if store else checkpoint.uri


def moved_storage(job: RLHFJob) -> str | None:
    """What is wrong, where the checkpoints of attempts that have begun lie somewhere else."""
    used = job.status.storage if job.status else None
    wanted = location(job)
    if used is None or used == wanted:
        return None
    return (
        f"spec.checkpoints is immutable: it was {used}, and is {wanted}. "
        "Put it back, or make another RLHFJob."
    )
