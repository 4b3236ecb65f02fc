"""Puts the children of one attempt together."""

from __future__ import annotations

from typing import Final

from rlhf_api.job import RLHFJob
from rlhf_api.run import PREPARE
from rlhf_api.status import CheckpointRef, JobStatus, StageStatus

from rlhf_operator.inputs import input_hash, prepare_hash, settings
from rlhf_operator.names import ANNOTATION_GANG, attempt_folder
from rlhf_operator.render.config import config_map, refs_of
from rlhf_operator.render.defaults import with_defaults
from rlhf_operator.render.gang import PodSet, gang_choice, gang_for
from rlhf_operator.render.metadata import AttemptKey, Object, with_applied
from rlhf_operator.render.platform import ANY_CLUSTER, Platform
from rlhf_operator.render.secrets import secrets_of
from rlhf_operator.render.service import service
from rlhf_operator.render.volumes import Contents, checkpoint_claim, place
from rlhf_operator.render.workload import resources_of, workload

UNKNOWN_DIGEST: Final = "sha256:" + "0" * 64


def render(
    job: RLHFJob,
    stage: str,
    attempt: int,
    input_hash: str,
    settings: str,
    platform: Platform = ANY_CLUSTER,
) -> list[Object]:
    """The objects of one attempt, in the order in which they are to be applied.

    `job.status` names the outputs of the stages that this one takes; ValueError where it does not.
    """
    with_all = with_defaults(job, platform.defaults)
    key = AttemptKey(with_all, stage, attempt, input_hash, settings)
    refs = refs_of(job.spec, stage)
    contents = Contents(place(refs), secrets_of(key, refs, platform))
    pods = PodSet(key, resources_of(key, platform), platform)
    job_object = workload(key, contents, pods.resources, platform)
    before: list[Object] = []
    if stage != PREPARE:
        before.append(service(key))
        gang = gang_for(job.spec.scheduling, platform)
        before += gang.objects(pods)
        gang.mark(pods, job_object)
        before = [with_applied(item) for item in before]
        choice = gang_choice(with_all.spec.scheduling, platform)
        job_object["metadata"]["annotations"][ANNOTATION_GANG] = choice.name
    config = config_map(key, contents.sources, platform)
    return [*checkpoint_claim(with_all), config, *before, job_object]


def preview(job: RLHFJob, platform: Platform = ANY_CLUSTER) -> list[Object]:
    """What the whole pipeline would make if every stage succeeded at its first attempt.

    Digests that only a run can tell are zeros, and the names that follow from them differ.
    """
    status = JobStatus()
    objects: list[Object] = []
    for stage in [PREPARE, *job.spec.stages.present()]:
        so_far = job.model_copy(update={"status": status})
        wanted = _foreseen_hash(so_far, stage)
        objects += render(so_far, stage, 1, wanted, settings(job, stage, wanted), platform)
        output = f"{attempt_folder(job, stage, wanted, 1)}/output"
        checkpoint = CheckpointRef(uri=output, digest=UNKNOWN_DIGEST)
        shown = StageStatus(hash=wanted, checkpoint=checkpoint)
        status = status.model_copy(update={"stages": {**status.stages, stage: shown}})
    unique = {(item["kind"], item["metadata"]["name"]): item for item in objects}
    return list(unique.values())


def _foreseen_hash(job: RLHFJob, stage: str) -> str:
    if stage == PREPARE:
        return prepare_hash(job, {})
    outputs = dict.fromkeys(job.spec.stages.parents(stage).values(), UNKNOWN_DIGEST)
    return input_hash(job, stage, {}, outputs)
