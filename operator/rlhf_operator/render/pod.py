"""The pod of an attempt: who runs it, where it may run, how long."""

from __future__ import annotations

from typing import Any, Final

from rlhf_api.resources import Resources
from rlhf_api.run import PREPARE

from rlhf_operator.names import service_name
from rlhf_operator.render.container import DEVICES, container
from rlhf_operator.render.metadata import AttemptKey, Object
from rlhf_operator.render.platform import Platform
from rlhf_operator.render.security import USER_ID, pod_security
from rlhf_operator.render.volumes import Contents, pod_volumes

PREPARE_GRACE_SECONDS: Final = 120
UPLOAD_FACTOR: Final = 5
"""Where checkpoints are in an object store, a pod gets this many times as long: it uploads too."""
DAY: Final = 86_400
LONGEST_PREPARE: Final = DAY
LONGEST_ATTEMPT: Final = 30 * DAY
"""No pod holds devices for longer, whatever becomes of operator and control plane."""


def pod_spec(
    key: AttemptKey, contents: Contents, resources: Resources, platform: Platform
) -> Object:
    """The pod's specification, without what a gang scheduler adds."""
    security = pod_security()
    security["securityContext"] |= {"fsGroup": USER_ID, "fsGroupChangePolicy": "OnRootMismatch"}
    spec: Object = {
        "restartPolicy": "Never",
        "subdomain": service_name(key.name),
        "terminationGracePeriodSeconds": _grace(key),
        "activeDeadlineSeconds": _longest(key),
        **security,
        "containers": [container(key, contents, resources, platform)],
        "volumes": pod_volumes(key, contents, resources.shm_size, platform),
    }
    return spec | _placement(key, resources)


def deadline(key: AttemptKey) -> int | None:
    """The limit that the user sets to an attempt; the Job controller keeps it."""
    if key.stage == PREPARE:
        return None
    return key.job.spec.stages.present()[key.stage].retry.deadline_seconds


def _longest(key: AttemptKey) -> int:
    """The kubelet's own limit, so that a node that is cut off lets go of its devices, too.

    Later than the Job's, so that the Job controller is the one who says what happened.
    """
    longest = LONGEST_PREPARE if key.stage == PREPARE else LONGEST_ATTEMPT
    return (deadline(key) or longest) + _grace(key)


def _grace(key: AttemptKey) -> int:
    to_save = PREPARE_GRACE_SECONDS
    if key.stage != PREPARE:
        to_save = key.job.spec.stages.present()[key.stage].checkpointing.grace_seconds
    return to_save * (UPLOAD_FACTOR if key.job.spec.checkpoints.uri else 1)


def _placement(key: AttemptKey, resources: Resources) -> Object:
    """Which nodes the pods may run on, and as whom; what is unset is left out."""
    template = resources.device_claim_template
    affinity = resources.affinity.to_dict() if resources.affinity else None
    placement: dict[str, Any] = {
        "nodeSelector": dict(resources.node_selector or {}),
        "tolerations": [item.to_dict() for item in resources.tolerations or ()],
        "affinity": affinity,
        "priorityClassName": resources.priority_class,
        "runtimeClassName": resources.runtime_class,
        "serviceAccountName": resources.service_account,
        "imagePullSecrets": [{"name": name} for name in key.job.spec.image_pull_secrets],
        "resourceClaims": [{"name": DEVICES, "resourceClaimTemplateName": template}]
        if template
        else [],
    }
    return {name: value for name, value in placement.items() if value}
