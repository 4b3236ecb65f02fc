"""Volcano: scheduling.volcano.sh/v1beta1 PodGroup.

Pods are grouped by the annotation alone; without it a controller makes a PodGroup of one for each.
`minTaskMember` and `subGroupPolicy` must not meet: a gang of one role has the former, a gang with
roles on separate GPUs the latter, which tells pods by the label that the Job controller gives them.
"""

from __future__ import annotations

from typing import Final

from rlhf_api.resources import Topology

from rlhf_operator.names import COMPLETION_INDEX
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
from rlhf_operator.render.sub_groups import SubGroup, sub_groups

KIND: Final = "scheduling.volcano.sh/v1beta1/PodGroup"
WORKER: Final = "worker"
MODES: Final = {"required": "hard", "preferred": "soft"}


def _objects(pods: PodSet) -> list[Object]:
    resources, spec = pods.resources, pods.key.job.spec
    groups = sub_groups(spec, pods.key.stage)
    members: Object = (
        {"subGroupPolicy": [_sub_group(group) for group in groups]}
        if groups
        else {"minTaskMember": {WORKER: resources.nodes}}
    )
    group = {
        "minMember": resources.nodes,
        **members,
        "minResources": min_resources(resources),
        "queue": spec.scheduling.queue,
        "priorityClassName": resources.priority_class,
        "networkTopology": _network_topology(resources.topology),
    }
    return [group_object(pods, KIND, group)]


def _sub_group(group: SubGroup) -> Object:
    """All pods of the role, as one sub-group that is there as a whole or not at all."""
    indices = [str(index) for index in group.pods]
    among = {"key": COMPLETION_INDEX, "operator": "In", "values": indices}
    return {
        "name": group.name,
        "labelSelector": {"matchExpressions": [among]},
        "subGroupSize": len(indices),
        "minSubGroups": 1,
    }


def _network_topology(topology: Topology | None) -> Object | None:
    """Tiers of HyperNodes have a number or a name; a node label (it has a domain) is neither."""
    if topology is None or "/" in topology.level:
        return None
    level: Object = (
        {"highestTierAllowed": int(topology.level)}
        if topology.level.isdecimal()
        else {"highestTierName": topology.level}
    )
    return {"mode": MODES[topology.mode], **level}


def _mark(pods: PodSet, job: Object) -> None:
    meta, spec = pod_template(job)
    spec["schedulerName"] = "volcano"
    meta["annotations"]["scheduling.k8s.io/group-name"] = pods.key.name
    if not sub_groups(pods.key.job.spec, pods.key.stage):
        meta["annotations"]["volcano.sh/task-spec"] = WORKER
    if _network_topology(pods.resources.topology) is None:
        keep_together(pods, job)


VOLCANO = Gang(kinds=serves(KIND), objects=_objects, mark=_mark)
