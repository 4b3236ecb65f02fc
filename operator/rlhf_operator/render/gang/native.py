"""Kubernetes' own gang scheduling, behind feature gates: the served version is discovered.

1.35 v1alpha1: a Workload, and a reference to it in the pod. From 1.36 (v1alpha2) on: a PodGroup.
"""

from __future__ import annotations

from typing import Final

from rlhf_api.resources import Resources

from rlhf_operator.render.gang.scheduler import Gang, pod_template
from rlhf_operator.render.metadata import AttemptKey, Object, metadata
from rlhf_operator.render.platform import Platform

GROUP: Final = "scheduling.k8s.io"
POD_GROUP_VERSIONS: Final = ("v1beta1", "v1alpha2")
WORKLOAD: Final = f"{GROUP}/v1alpha1/Workload"
WORKERS: Final = "workers"


def _pod_group_version(platform: Platform) -> str | None:
    """The newest version of PodGroup that is served."""
    served = (v for v in POD_GROUP_VERSIONS if f"{GROUP}/{v}/PodGroup" in platform.served)
    return next(served, None)


def _is_served(platform: Platform) -> bool:
    return _pod_group_version(platform) is not None or WORKLOAD in platform.served


def _uses_workload(platform: Platform) -> bool:
    return _pod_group_version(platform) is None and WORKLOAD in platform.served


def _objects(key: AttemptKey, resources: Resources, platform: Platform) -> list[Object]:
    gang = {"gang": {"minCount": resources.nodes}}
    if _uses_workload(platform):
        group = {"name": WORKERS, "policy": gang}
        return [_object(key, "v1alpha1", "Workload", {"podGroups": [group]})]
    version = _pod_group_version(platform) or POD_GROUP_VERSIONS[-1]
    return [_object(key, version, "PodGroup", {"schedulingPolicy": gang})]


def _object(key: AttemptKey, version: str, kind: str, spec: Object) -> Object:
    return {
        "apiVersion": f"{GROUP}/{version}",
        "kind": kind,
        "metadata": metadata(key),
        "spec": spec,
    }


def _mark(key: AttemptKey, job: Object, platform: Platform) -> None:
    _, spec = pod_template(job)
    if _uses_workload(platform):
        spec["workloadRef"] = {"name": key.name, "podGroup": WORKERS}
    else:
        spec["schedulingGroup"] = {"podGroupName": key.name}


NATIVE = Gang(is_served=_is_served, objects=_objects, mark=_mark)
