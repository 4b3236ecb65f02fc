"""What each gang scheduler has to say of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rlhf_api.resources import Resources

from rlhf_operator.render.metadata import AttemptKey, Object
from rlhf_operator.render.platform import Platform


class Gang(NamedTuple):
    """One gang scheduler."""

    is_served: Callable[[Platform], bool]
    """Whether the API server knows the kind that it reads."""
    objects: Callable[[AttemptKey, Resources, Platform], list[Object]]
    """What is made beside the Job."""
    mark: Callable[[AttemptKey, Object, Platform], None]
    """Writes into a freshly rendered Job what ties its pods to the gang."""


def pod_template(job: Object) -> tuple[Object, Object]:
    """Metadata and spec of the Job's pods."""
    template: Object = job["spec"]["template"]
    return template["metadata"], template["spec"]


def device_total(resources: Resources) -> Object:
    """Devices of the whole gang, as `minResources`; empty without devices."""
    if not resources.gpus_per_node:
        return {}
    total = resources.nodes * resources.gpus_per_node
    return {"minResources": {resources.device: str(total)}}


def without_empty(values: Object) -> Object:
    """The members that have a value."""
    return {name: value for name, value in values.items() if value is not None}
