"""No gang scheduler: a cluster without one, and one machine."""

from __future__ import annotations

from rlhf_api.resources import Resources

from rlhf_operator.render.gang.scheduler import Gang
from rlhf_operator.render.metadata import AttemptKey, Object
from rlhf_operator.render.platform import Platform


def _objects(key: AttemptKey, resources: Resources, platform: Platform) -> list[Object]:
    return []


def _mark(key: AttemptKey, job: Object, platform: Platform) -> None:
    return None


NONE = Gang(is_served=lambda platform: True, objects=_objects, mark=_mark)
