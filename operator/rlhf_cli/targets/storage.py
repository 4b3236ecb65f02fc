"""Whose storage the checkpoints of a job are in."""

from __future__ import annotations

from rlhf_api.job import RLHFJob

from rlhf_cli.failures import Failure


def refuse_storage_of_others(job: RLHFJob) -> None:
    """Raises Failure where the job's checkpoints are in storage that it did not make."""
    spec = job.spec.checkpoints
    if spec.uri or spec.existing_claim:
        kept = spec.uri or f"the claim {spec.existing_claim}"
        raise Failure(
            f"the checkpoints of {job.metadata.name} are in {kept}, which it did not make: delete "
            "them there",
            "leave out --checkpoints to delete the job alone",
        )
