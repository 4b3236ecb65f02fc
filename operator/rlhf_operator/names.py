"""Names of all that a job makes: deterministic, so a repeated pass finds what was made before."""

from __future__ import annotations

from typing import Final, NamedTuple

from rlhf_api.job import RLHFJob, Stages
from rlhf_api.run import PREPARE

LABEL_JOB: Final = "rlhf.dev/job"
LABEL_STAGE: Final = "rlhf.dev/stage"
LABEL_ATTEMPT: Final = "rlhf.dev/attempt"
ANNOTATION_HASH: Final = "rlhf.dev/input-hash"
ANNOTATION_SETTINGS: Final = "rlhf.dev/settings"
ANNOTATION_JOB_UID: Final = "rlhf.dev/job-uid"
"""On an attempt's children and pods: the RLHFJob that they are of, and not one of its name."""
ANNOTATION_GANG: Final = "rlhf.dev/gang"
"""On an attempt's Job: the gang scheduler that it was made for."""
ANNOTATION_APPLIED: Final = "rlhf.dev/applied"
"""On Services and gang objects: the spec that they were made with, as JSON."""
ANNOTATION_RETRY_STAGE: Final = "rlhf.dev/retry-"
"""Followed by a stage's name, or `prepare`; the value is the number of the attempt that failed."""
ANNOTATION_REFRESH: Final = "rlhf.dev/refresh"
"""Set by a person; any new value has `prepare` look at all sources again."""
ANNOTATION_APPROVE: Final = "rlhf.dev/approve-"
"""Followed by a stage's name; the value is the input hash of the result that is approved."""

COMPLETION_INDEX: Final = "batch.kubernetes.io/job-completion-index"
"""The Job controller's own, label and annotation of each pod of an Indexed Job."""

CONTROLLER_UID: Final = "batch.kubernetes.io/controller-uid"
"""By which the Job controller knows its pods, whatever becomes of our labels."""
CONTAINER_NAME: Final = "trainer"
"""Of the one container that a pod is made with."""
FIELD_MANAGER: Final = "rlhf-operator"
STAGES: Final = (PREPARE, *Stages.model_fields)
"""All that an attempt may be of, in the order in which they run."""
SHORT_HASH: Final = 12
"""Hexadecimal digits of a hash in names and paths: 48 bits, ample for one job's history."""


class JobKey(NamedTuple):
    """Which RLHFJob."""

    namespace: str
    name: str


def short(digest: str) -> str:
    """The first digits of ``sha256:<hex>``, as they appear in names."""
    return digest.removeprefix("sha256:")[:SHORT_HASH]


def child_name(job: str, stage: str, attempt: int) -> str:
    """Name of an attempt's Job, ConfigMap and gang object, and mostly of its Service."""
    return f"{job}-{stage}-{attempt}"


def service_name(child: str) -> str:
    """Name of the Service beside the Job of that name.

    Before Kubernetes 1.36 (KEP-5311) a Service's name begins with a letter, unlike an RLHFJob's.
    What then stands behind the number keeps it from being the name of another job's child.
    """
    return f"x{child}-pods" if child[0].isdecimal() else child


def child_of(name: str) -> tuple[str, str, int] | None:
    """The inverse of `child_name`: job, stage and attempt; None for names of another form."""
    job, *rest = name.rsplit("-", 2)
    if len(rest) < 2 or rest[0] not in STAGES or not rest[1].isdecimal():
        return None
    return job, rest[0], int(rest[1])


def pod_host(child: str, index: int) -> str:
    """DNS name of a pod of an Indexed Job behind the headless Service."""
    return f"{child}-{index}.{service_name(child)}"


def claim_name(job: RLHFJob) -> str:
    """The claim that holds the job's checkpoints."""
    return job.spec.checkpoints.existing_claim or f"{job.metadata.name}-checkpoints"


def job_folder(job: RLHFJob) -> str:
    """The job's folder in the volume.

    The UID is part of it: a job that is deleted and made again under the same name counts its
    attempts from 1 and must not meet the old one's directories in a volume that was retained.
    """
    uid = job.metadata.uid.replace("-", "")[:8]
    return f"{job.metadata.name}-{uid}" if uid else job.metadata.name


def lineage(job: RLHFJob, stage: str, input_hash: str) -> str:
    """Directory, below the checkpoint volume, of all attempts of a stage on one input hash."""
    return f"{job_folder(job)}/{stage}-{short(input_hash)}"


def attempt_folder(job: RLHFJob, stage: str, input_hash: str, attempt: int) -> str:
    """Directory, below the checkpoint volume, that one attempt alone writes."""
    return f"{lineage(job, stage, input_hash)}/attempt-{attempt}"
