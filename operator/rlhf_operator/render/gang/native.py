"""Kubernetes' own gang scheduling, behind feature gates: the served version is discovered.

1.35 v1alpha1: a Workload, and a reference to it in the pod. From 1.36 (v1alpha2) on: a PodGroup.
"""

from __future__ import annotations

from typing import Final

from rlhf_operator.render.gang.scheduler import (
    Gang,
    PodSet,
    group_object,
    keep_together,
    pod_template,
    serves,
)
from rlhf_operator.render.metadata import Object
from rlhf_operator.render.platform import Platform

GROUP: Final = "scheduling.k8s.io"
POD_GROUPS: Final = (f"{GROUP}/v1beta1/PodGroup", f"{GROUP}/v1alpha2/PodGroup")
WORKLOAD: Final = f"{GROUP}/v1alpha1/Workload"
WORKERS: Final = "workers"
_kinds = serves(*POD_GROUPS, WORKLOAD)


def _kind(platform: Platform) -> str:
    """The newest kind that is served; where nothing is known of the cluster, that of 1.36."""
    return next(iter(_kinds(platform)), POD_GROUPS[-1])


def _objects(pods: PodSet) -> list[Object]:
    kind = _kind(pods.platform)
    gang = {"gang": {"minCount": pods.resources.nodes}}
    if kind == WORKLOAD:
        return [group_object(pods, kind, {"podGroups": [{"name": WORKERS, "policy": gang}]})]
    return [group_object(pods, kind, {"schedulingPolicy": gang})]


def _mark(pods: PodSet, job: Object) -> None:
    _, spec = pod_template(job)
    if _kind(pods.platform) == WORKLOAD:
        spec["workloadRef"] = {"name": pods.key.name, "podGroup": WORKERS}
    else:
        spec["schedulingGroup"] = {"podGroupName": pods.key.name}
    keep_together(pods, job)


NATIVE = Gang(kinds=_kinds, objects=_objects, mark=_mark)
