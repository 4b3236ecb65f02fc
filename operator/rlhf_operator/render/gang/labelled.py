"""A PodGroup of a number of pods that a label joins: scheduler-plugins, and what comes from it."""

from __future__ import annotations

from collections.abc import Callable

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


def joined_by_label(kind: str, label: str, scheduler: Callable[[PodSet], str]) -> Gang:
    """Gangs of this PodGroup: pods have its name in the label, and are left to the scheduler."""

    def objects(pods: PodSet) -> list[Object]:
        resources = pods.resources
        spec = {"minMember": resources.nodes, "minResources": min_resources(resources)}
        return [group_object(pods, kind, spec)]

    def mark(pods: PodSet, job: Object) -> None:
        meta, spec = pod_template(job)
        spec["schedulerName"] = scheduler(pods)
        meta["labels"][label] = pods.key.name
        keep_together(pods, job)

    return Gang(kinds=serves(kind), objects=objects, mark=mark)
