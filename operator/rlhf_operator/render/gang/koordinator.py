"""Koordinator: scheduling.sigs.k8s.io/v1alpha1 PodGroup."""

from __future__ import annotations

from typing import Final

from rlhf_api.resources import Resources

from rlhf_operator.render.gang.scheduler import Gang, device_total, pod_template
from rlhf_operator.render.metadata import AttemptKey, Object, metadata
from rlhf_operator.render.platform import Platform

KIND: Final = "scheduling.sigs.k8s.io/v1alpha1/PodGroup"


def _objects(key: AttemptKey, resources: Resources, platform: Platform) -> list[Object]:
    return [
        {
            "apiVersion": "scheduling.sigs.k8s.io/v1alpha1",
            "kind": "PodGroup",
            "metadata": metadata(key),
            "spec": {"minMember": resources.nodes} | device_total(resources),
        }
    ]


def _mark(key: AttemptKey, job: Object, platform: Platform) -> None:
    meta, spec = pod_template(job)
    spec["schedulerName"] = "koord-scheduler"
    meta["labels"]["pod-group.scheduling.sigs.k8s.io"] = key.name


KOORDINATOR = Gang(is_served=lambda platform: KIND in platform.served, objects=_objects, mark=_mark)
