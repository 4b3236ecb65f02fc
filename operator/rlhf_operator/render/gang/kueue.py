"""Kueue: a label on the Job, which is made suspended; Kueue makes the rest.

From then on spec.suspend belongs to Kueue; a new attempt is a new Job with a name of its own.
"""

from __future__ import annotations

from typing import Final

from rlhf_api.resources import Resources

from rlhf_operator.render.gang.scheduler import Gang
from rlhf_operator.render.metadata import AttemptKey, Object
from rlhf_operator.render.platform import Platform

KIND: Final = "kueue.x-k8s.io/v1beta1/Workload"


def _objects(key: AttemptKey, resources: Resources, platform: Platform) -> list[Object]:
    return []


def _mark(key: AttemptKey, job: Object, platform: Platform) -> None:
    if key.job.spec.scheduling.queue:
        job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = key.job.spec.scheduling.queue
        job["spec"]["suspend"] = True


KUEUE = Gang(is_served=lambda platform: KIND in platform.served, objects=_objects, mark=_mark)
