"""What each gang scheduler has to say of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rlhf_api.resources import Resources

from rlhf_operator.render.container import extended_resources
from rlhf_operator.render.metadata import AttemptKey, Object, attempt_labels, metadata
from rlhf_operator.render.platform import Platform
from rlhf_operator.render.quantities import times


class PodSet(NamedTuple):
    """The pods of one attempt, which start together or not at all."""

    key: AttemptKey
    resources: Resources
    platform: Platform


class Gang(NamedTuple):
    """One gang scheduler."""

    kinds: Callable[[Platform], list[str]]
    """The kinds that it reads, of those that the API server serves, as ``group/version/Kind``."""
    objects: Callable[[PodSet], list[Object]]
    """What is made beside the Job."""
    mark: Callable[[PodSet, Object], None]
    """Writes into a freshly rendered Job what ties its pods to the gang."""
    makes_its_own: bool = False
    """Whether its controller makes the objects of its kinds, and we none."""
    needs_queue: bool = False
    """Whether a job that names no queue would wait for ever."""
    suspends: bool = False
    """Whether its controller, and nobody else, is to set spec.suspend of a Job that it holds."""


def serves(*kinds: str) -> Callable[[Platform], list[str]]:
    """The kinds, in this order, that are served."""
    return lambda platform: [kind for kind in kinds if kind in platform.served]


def group_object(pods: PodSet, kind: str, spec: Object) -> Object:
    """The object that describes the gang; `kind` as ``group/version/Kind``."""
    version, _, name = kind.rpartition("/")
    meta = metadata(pods.key)
    return {"apiVersion": version, "kind": name, "metadata": meta, "spec": without_empty(spec)}


def pod_template(job: Object) -> tuple[Object, Object]:
    """Metadata and spec of the Job's pods."""
    template: Object = job["spec"]["template"]
    return template["metadata"], template["spec"]


def min_resources(resources: Resources) -> Object | None:
    """What the whole gang requests, where it is known; None where nothing is."""
    one_pod = {"cpu": resources.cpu, "memory": resources.memory, **extended_resources(resources)}
    known = {name: amount for name, amount in one_pod.items() if amount is not None}
    return {name: times(amount, resources.nodes) for name, amount in known.items()} or None


def keep_together(pods: PodSet, job: Object) -> None:
    """Pod affinity to the gang's own pods, for schedulers without a form of topology of their own.

    It follows the first pod that is bound: a gang that its domain turns out not to hold waits.
    """
    topology = pods.resources.topology
    if topology is None:
        return
    term = {
        "labelSelector": {"matchLabels": attempt_labels(pods.key)},
        "topologyKey": topology.level,
    }
    affinity: Object = (
        {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
        if topology.mode == "required"
        else {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 100, "podAffinityTerm": term}
            ]
        }
    )
    _, spec = pod_template(job)
    spec["affinity"] = {**spec.get("affinity", {}), "podAffinity": affinity}


def without_empty(values: Object) -> Object:
    """The members that have a value."""
    return {name: value for name, value in values.items() if value is not None}
