"""KAI: scheduling.run.ai/v2alpha2 PodGroup.

Its own pod grouper would put each pod of a kind it does not know into a gang of one, so it is told
to leave these alone.
"""

from __future__ import annotations

from typing import Final

from rlhf_api.resources import Resources

from rlhf_operator.render.gang.scheduler import Gang, pod_template, without_empty
from rlhf_operator.render.metadata import AttemptKey, Object, metadata
from rlhf_operator.render.platform import Platform

KIND: Final = "scheduling.run.ai/v2alpha2/PodGroup"


def _objects(key: AttemptKey, resources: Resources, platform: Platform) -> list[Object]:
    spec = {
        "minMember": resources.nodes,
        "queue": key.job.spec.scheduling.queue,
        "priorityClassName": resources.priority_class,
    }
    return [
        {
            "apiVersion": "scheduling.run.ai/v2alpha2",
            "kind": "PodGroup",
            "metadata": metadata(key),
            "spec": without_empty(spec),
        }
    ]


def _mark(key: AttemptKey, job: Object, platform: Platform) -> None:
    meta, spec = pod_template(job)
    spec["schedulerName"] = "kai-scheduler"
    meta["annotations"] |= {"pod-group-name": key.name, "kai.scheduler/skip-podgrouper": "true"}


KAI = Gang(is_served=lambda platform: KIND in platform.served, objects=_objects, mark=_mark)
