"""Volcano: scheduling.volcano.sh/v1beta1 PodGroup.

Pods are grouped by the annotation alone; without it a controller makes a PodGroup of one for each.
"""

from __future__ import annotations

from typing import Final

from rlhf_api.resources import Resources

from rlhf_operator.render.gang.scheduler import Gang, device_total, pod_template, without_empty
from rlhf_operator.render.metadata import AttemptKey, Object, metadata
from rlhf_operator.render.platform import Platform

KIND: Final = "scheduling.volcano.sh/v1beta1/PodGroup"


def _objects(key: AttemptKey, resources: Resources, platform: Platform) -> list[Object]:
    spec = without_empty(
        {
            "minMember": resources.nodes,
            "queue": key.job.spec.scheduling.queue,
            "priorityClassName": resources.priority_class,
        }
    )
    return [
        {
            "apiVersion": "scheduling.volcano.sh/v1beta1",
            "kind": "PodGroup",
            "metadata": metadata(key),
            "spec": spec | device_total(resources),
        }
    ]


def _mark(key: AttemptKey, job: Object, platform: Platform) -> None:
    meta, spec = pod_template(job)
    spec["schedulerName"] = "volcano"
    meta["annotations"]["scheduling.k8s.io/group-name"] = key.name


VOLCANO = Gang(is_served=lambda platform: KIND in platform.served, objects=_objects, mark=_mark)
