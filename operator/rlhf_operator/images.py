"""Which image a stage trains with, and whether a name that was written down later changes it. Pure.

The input hash holds images as the user wrote them, so that a new default of the operator's trains
nothing again. With that alone, a job that later names the very image that it got by default would
count as one with another image: what an attempt got is therefore written down beside its hash.
"""

from __future__ import annotations

from collections.abc import Callable

from rlhf_api.job import RLHFJob
from rlhf_api.status import StageStatus

from rlhf_operator.inputs import Wanted, settings


def image_of(job: RLHFJob, stage: str, default: str | None) -> str | None:
    """The image of a stage's pods; `default` is that of jobs that name none."""
    return _named(job, stage) or default


def wanted_of(
    job: RLHFJob, stage: str, status: StageStatus, hash_of: Callable[[RLHFJob], str]
) -> Wanted:
    """What the stage is to work on, by `hash_of` the job.

    Where the job names the image that an attempt of this stage got while it named none, and all
    else is as it was, that is the same work.
    """
    tried = [(status.hash, status.image), *((run.hash, run.image) for run in status.finished)]
    wanted, image = hash_of(job), _named(job, stage)
    if image and all(wanted != hash for hash, _ in tried):
        unnamed = _without_name(job, stage)
        same = hash_of(unnamed)
        if (same, image) in tried:
            job, wanted = unnamed, same
    return Wanted(wanted, settings(job, stage, wanted))


def _named(job: RLHFJob, stage: str) -> str | None:
    config = job.spec.stages.present().get(stage)
    return (config.image if config else None) or job.spec.image


def _without_name(job: RLHFJob, stage: str) -> RLHFJob:
    """The job as it would be with this stage's image left open."""
    spec, config = job.spec, job.spec.stages.present().get(stage)
    update: dict[str, object] = {"image": None}
    if config and config.image:
        own = config.model_copy(update={"image": None})
        update["stages"] = spec.stages.model_copy(update={stage: own})
    return job.model_copy(update={"spec": spec.model_copy(update=update)})
