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
REASONS: Final = tuple(pause.reason for pause in (SUSPENDED, INTERRUPTED))


def pause_of(job: RLHFJob, observed: Observed) -> Pause | None:
    """What the spec asks for lasts, and so comes before an interruption."""
    if job.spec.suspend:
        return SUSPENDED
    return INTERRUPTED if observed.is_interrupted else None
