"""What the status of an interrupted run says: the plan takes it for one that was suspended."""

from __future__ import annotations

from rlhf_api.status import JobStatus, StageStatus

REASON = "Interrupted"
MESSAGE = "The run was interrupted; it goes on from its checkpoints when it is started again."


def interrupted(status: JobStatus) -> JobStatus:
    """The status in the words of a run on one machine. Pure."""
    conditions = [
        item.model_copy(update={"reason": REASON, "message": MESSAGE})
        if item.reason == "Suspended"
        else item
        for item in status.conditions
    ]
    stages = {name: _stage(stage) for name, stage in status.stages.items()}
    prepare = _stage(status.prepare) if status.prepare else None
    changed = {"conditions": conditions, "stages": stages, "prepare": prepare}
    return status.model_copy(update=changed)


def _stage(stage: StageStatus) -> StageStatus:
    if stage.reason != "Suspended":
        return stage
    return stage.model_copy(update={"reason": REASON, "message": MESSAGE})
