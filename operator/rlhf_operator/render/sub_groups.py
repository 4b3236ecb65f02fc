"""Which pods of a gang have which roles, where a stage keeps roles on separate GPUs."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from rlhf_api.job import JobSpec
from rlhf_api.stages.ppo import Placement


class SubGroup(NamedTuple):
    """Pods, one after the other, that have the same roles."""

    name: str
    pods: tuple[int, ...]
    """Completion indices."""


def sub_groups(spec: JobSpec, stage: str) -> list[SubGroup]:
    """The sub-groups of a stage's pods; empty where all of them do the same."""
    placement: Placement | None = getattr(spec.stages.present().get(stage), "placement", None)
    if placement is None:
        return []
    per_pod = spec.resources_of(stage).ranks_per_node
    roles = _roles_of_ranks(placement)
    pods = [tuple(dict.fromkeys(roles[i : i + per_pod])) for i in range(0, len(roles), per_pod)]
    return [
        SubGroup("-".join(names), tuple(index for index, _ in members))
        for names, members in groupby(enumerate(pods), key=lambda item: item[1])
    ]


def _roles_of_ranks(placement: Placement) -> list[str]:
    """The role of each rank: ranks are given out in the order of the contract's fields."""
    sizes = {name: getattr(placement, name) or 0 for name in Placement.model_fields}
    return [name for name, size in sizes.items() for _ in range(size)]
