"""A job with its cluster's defaults in the fields that it leaves open."""

from __future__ import annotations

from rlhf_api.job import DEFAULT_IMAGE, JobSpec, RLHFJob
from rlhf_api.resources import Resources
from rlhf_api.storage import Claim

from rlhf_operator.render.platform import Defaults


def with_defaults(job: RLHFJob, defaults: Defaults) -> RLHFJob:
    """The job as it is rendered. Hashes are taken of the job as its user wrote it."""
    spec = job.spec
    update = {
        "image": spec.image or default_image(defaults),
        "scheduling": spec.scheduling.model_copy(
            update={"queue": spec.scheduling.queue or defaults.queue}
        ),
        "checkpoints": spec.checkpoints.model_copy(update={"claim": _claim(spec, defaults)}),
    }
    return job.model_copy(update={"spec": spec.model_copy(update=update)})


def default_image(defaults: Defaults) -> str:
    """The trainer image of jobs that name none."""
    return defaults.image or DEFAULT_IMAGE


def _claim(spec: JobSpec, defaults: Defaults) -> Claim | None:
    """The claim that is made, or None where checkpoints are kept elsewhere."""
    if spec.checkpoints.existing_claim or spec.checkpoints.uri:
        return None
    claim = spec.checkpoints.claim or Claim()
    storage_class = claim.storage_class or defaults.storage_class
    return claim.model_copy(update={"storage_class": storage_class})


def on_device_nodes(resources: Resources, defaults: Defaults) -> Resources:
    """What a stage asks for; with devices, on the nodes that the cluster keeps for them."""
    if not resources.gpus_per_node:
        return resources
    selector = {**defaults.node_selector, **(resources.node_selector or {})}
    own = resources.tolerations or ()
    tolerations = [*own, *(item for item in defaults.tolerations if item not in own)]
    return resources.model_copy(update={"node_selector": selector, "tolerations": tolerations})
