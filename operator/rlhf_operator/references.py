"""Which objects of the cluster a job names. Pure: whether they are there is for others to see.

Secrets are not among them: the operator has no right to read them, nor to know which there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from rlhf_api.base import Contract
from rlhf_api.job import RLHFJob
from rlhf_api.sources import named_sources, uris

from rlhf_operator.render.gang import gang_choice
from rlhf_operator.render.platform import Platform


class Kind(NamedTuple):
    """A kind of object, and what its absence does."""

    api_version: str
    kind: str
    plural: str
    is_namespaced: bool
    consequence: str


class Reference(NamedTuple):
    """A name in a manifest that an object has to have."""

    path: str  # spec.checkpoints.existingClaim
    kind: Kind
    name: str


PODS_WAIT: Final = "pods wait until it is there"
NO_PODS: Final = "no pod is made until it is there"
CLAIM: Final = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims", True, PODS_WAIT)
FIELDS: Final = {
    "existing_claim": CLAIM,
    "storage_class": Kind(
        "storage.k8s.io/v1", "StorageClass", "storageclasses", False, "the claim stays pending"
    ),
    "priority_class": Kind(
        "scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", False, NO_PODS
    ),
    "runtime_class": Kind("node.k8s.io/v1", "RuntimeClass", "runtimeclasses", False, NO_PODS),
    "service_account": Kind("v1", "ServiceAccount", "serviceaccounts", True, NO_PODS),
    "device_claim_template": Kind(
        "resource.k8s.io/v1", "ResourceClaimTemplate", "resourceclaimtemplates", True, PODS_WAIT
    ),
}
"""By field of the contract, wherever it stands."""
NOT_ADMITTED: Final = "nothing is admitted until it is there"
QUEUES: Final = {
    "kueue": [
        Kind(f"kueue.x-k8s.io/{version}", "LocalQueue", "localqueues", True, NOT_ADMITTED)
        for version in ("v1", "v1beta2", "v1beta1")
    ],
    "volcano": [Kind("scheduling.volcano.sh/v1beta1", "Queue", "queues", False, NOT_ADMITTED)],
    "kai": [Kind("scheduling.run.ai/v2", "Queue", "queues", False, NOT_ADMITTED)],
}
"""By gang scheduler; the first kind that the API server serves counts."""


def references(job: RLHFJob, platform: Platform) -> list[Reference]:
    """Every object that the job names, each once, at the first place that names it."""
    found: dict[tuple[str, str], Reference] = {}
    for reference in (*_of_fields(job.spec, "spec"), *_of_sources(job), *_queue(job, platform)):
        found.setdefault((reference.kind.kind, reference.name), reference)
    return list(found.values())


def _of_fields(value: object, path: str) -> Iterator[Reference]:
    if not isinstance(value, Contract):
        return
    for name, info in type(value).model_fields.items():
        below, child = f"{path}.{info.alias or name}", getattr(value, name)
        if name in FIELDS and isinstance(child, str):
            yield Reference(below, FIELDS[name], child)
        yield from _of_fields(child, below)


def _of_sources(job: RLHFJob) -> Iterator[Reference]:
    for source in named_sources(job.spec, "spec"):
        for address in uris(source.value):
            if address.startswith("pvc://"):
                claim = address.removeprefix("pvc://").partition("/")[0]
                yield Reference(source.field, CLAIM, claim)


def _queue(job: RLHFJob, platform: Platform) -> Iterator[Reference]:
    queue = job.spec.scheduling.queue
    for kind in QUEUES.get(gang_choice(job.spec.scheduling, platform).name, []):
        if queue and f"{kind.api_version}/{kind.kind}" in platform.served:
            yield Reference("spec.scheduling.queue", kind, queue)
            return
