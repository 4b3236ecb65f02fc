"""Koordinator: scheduling.sigs.k8s.io/v1alpha1 PodGroup."""

from __future__ import annotations

from typing import Final

from rlhf_operator.render.gang.scheduler import (
    Gang,
    PodSet,
    group_object,
    keep_together,
    min_resources,
    pod_template,
    serves,
)
from rlhf_operator.render.metadata import Object

KIND: Final = "scheduling.sigs.k8s.io/v1alpha1/PodGroup"


def _objects(pods: PodSet) -> list[Object]:
    resources = pods.resources
    spec = {"minMember": resources.nodes, "minResources": min_resources(resources)}
    return [group_object(pods, KIND, spec)]


def _mark(pods: PodSet, job: Object) -> None:
    meta, spec = pod_template(job)
    spec["schedulerName"] = "koord-scheduler"
    meta["labels"]["pod-group.scheduling.sigs.k8s.io"] = pods.key.name
    keep_together(pods, job)


KOORDINATOR = Gang(kinds=serves(KIND), objects=_objects, mark=_mark)
