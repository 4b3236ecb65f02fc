"""Why a whole job stands still by somebody's wish. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

from rlhf_api.job import RLHFJob

from rlhf_operator.observed import Observed


class Pause(NamedTuple):
    """Whose wish it is."""

    reason: str
    message: str


SUSPENDED: Final = Pause("Suspended", "spec.suspend is true; checkpoints are kept.")
INTERRUPTED: Final = Pause(
    "Interrupted",
    "The run was interrupted; it goes on from its checkpoints when it is started again.",
)
DELETING: Final = "Deleting"
REASONS: Final = (SUSPENDED.reason, INTERRUPTED.reason, DELETING)


def pause_of(job: RLHFJob, observed: Observed) -> Pause | None:
    """What the spec asks for lasts, and so comes before an interruption; a deletion is for good."""
    if job.metadata.deletion_timestamp:
        left = ", ".join(job.metadata.finalizers or ())
        return Pause(DELETING, f"It was deleted, and goes once its finalizers are removed: {left}.")
    if job.spec.suspend:
        return SUSPENDED
    return INTERRUPTED if observed.is_interrupted else None
