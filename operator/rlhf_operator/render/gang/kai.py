"""KAI: scheduling.run.ai/v2alpha2 PodGroup.

Its own pod grouper would put each pod of a kind it does not know into a gang of one, so it is told
to leave these alone. A PodGroup whose queue is not there is never scheduled. Sub-groups are told by
a label of each pod, and the pods of one Job have the same labels: roles on separate GPUs are one
gang here.
"""

from __future__ import annotations

from typing import Final

from rlhf_api.resources import Topology

from rlhf_operator.render.gang.scheduler import (
    Gang,
    PodSet,
    group_object,
    keep_together,
    pod_template,
    serves,
)
from rlhf_operator.render.metadata import Object

KIND: Final = "scheduling.run.ai/v2alpha2/PodGroup"


def _objects(pods: PodSet) -> list[Object]:
    spec = {
        "minMember": pods.resources.nodes,
        "queue": pods.key.job.spec.scheduling.queue,
        "priorityClassName": pods.resources.priority_class,
        "topologyConstraint": _constraint(pods.resources.topology),
    }
    return [group_object(pods, KIND, spec)]


def _constraint(topology: Topology | None) -> Object | None:
    """KAI finds levels in a Topology object; where none is named, pod affinity has to do."""
    if topology is None or topology.name is None:
        return None
    return {"topology": topology.name, f"{topology.mode}TopologyLevel": topology.level}


def _mark(pods: PodSet, job: Object) -> None:
    meta, spec = pod_template(job)
    spec["schedulerName"] = "kai-scheduler"
    meta["annotations"] |= {
        "pod-group-name": pods.key.name,
        "kai.scheduler/skip-podgrouper": "true",
    }
    if _constraint(pods.resources.topology) is None:
        keep_together(pods, job)


KAI = Gang(kinds=serves(KIND), objects=_objects, mark=_mark, needs_queue=True)
