"""Rules about the pods of each stage, whose resources are the job's with the stage's own on top."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pydantic.alias_generators import to_snake

from rlhf_api.job import JobSpec, Stages
from rlhf_api.resources import Resources
from rlhf_api.rules.rule import Rule
from rlhf_api.scheduling import WITH_QUEUES
from rlhf_api.stages.ppo import Placement


def _stage(spec: JobSpec, name: str) -> Any:
    return getattr(spec.stages, name)


def _resources(spec: JobSpec, name: str) -> Resources:
    return spec.resources.overridden_by(_stage(spec, name).resources)


def _in_effect(stage: str, field: str) -> str:
    """CEL for a stage's own value of a resource, else the job's."""
    return f"{stage}.?resources.?{field}.orValue(self.resources.{field})"


class _Cel:
    """CEL for one stage of a spec, which is `self`. Where the stage is absent, so is what is read
    of it, and the job's own resources are read: so `absent` may be asked last (see rule.py)."""

    def __init__(self, name: str) -> None:
        self.stage = f"self.stages.?{name}"
        self.absent = f"!has(self.stages.{name})"
        self.gpus = self.resource("gpusPerNode")
        self.processes = self.resource("processesPerNode")

    def has(self, field: str) -> str:
        """Whether the stage is there and sets an optional field."""
        return f"{self.stage}.?{field}.hasValue()"

    def resource(self, field: str) -> str:
        """The stage's own value of a resource, else the job's."""
        return _in_effect(self.stage, field)

    def has_no_resource(self, field: str) -> str:
        """Whether neither the job nor the stage sets an optional resource."""
        return f"!has(self.resources.{field}) && !{self.has(f'resources.?{field}')}"

    def holds(self, expression: str) -> str:
        """An expression about the stage, which is `stage` in it; true where it is absent."""
        return f"{self.stage}.optMap(stage, {expression}).orValue(true)"


def _is_ours(spec: JobSpec, name: str) -> bool:
    """Whether our trainer runs the stage."""
    return _stage(spec, name) is not None and _stage(spec, name).command is None


def every_rank_has_rows(name: str) -> Rule:
    """A GPU without a row in each optimizer step would only wait."""
    field = "minibatchSize" if name == "ppo" else "globalBatchSize"
    attribute = "minibatch_size" if name == "ppo" else "global_batch_size"
    cel = _Cel(name)
    nodes, gpus, processes = (
        _in_effect("stage", field) for field in ("nodes", "gpusPerNode", "processesPerNode")
    )
    ranks = f"{nodes} * ({gpus} > 0 ? {gpus} : {processes})"

    def holds(spec: JobSpec) -> bool:
        if not _is_ours(spec, name):
            return True
        resources = _resources(spec, name)
        rows: int = getattr(_stage(spec, name), attribute)
        return rows >= resources.nodes * resources.ranks_per_node

    return Rule(
        "every_rank_has_rows",
        f"stages.{name}.{field}",
        holds,
        cel.holds(f"stage.{field} >= {ranks} || has(stage.command)"),
        f"{{stages.{name}.{field}}} rows cannot keep every process of the stage busy",
        "at least nodes times gpusPerNode (processesPerNode without GPUs)",
    )


def processes_follow_gpus(name: str) -> Rule:
    """There is one process per GPU; their number is free only without GPUs."""
    cel = _Cel(name)

    def holds(spec: JobSpec) -> bool:
        if _stage(spec, name) is None:
            return True
        resources = _resources(spec, name)
        gpus, processes = resources.gpus_per_node, resources.processes_per_node
        return gpus == 0 or processes in (1, gpus)

    return Rule(
        "processes_follow_gpus",
        f"stages.{name}.resources.processesPerNode",
        holds,
        f"{cel.processes} == 1 || {cel.gpus} in [0, {cel.processes}] || {cel.absent}",
        "differs from gpusPerNode",
        "leave it out: there is one process per GPU",
    )


def _one_node_suffices(spec: JobSpec) -> bool:
    claim = spec.checkpoints.claim
    if claim is None or claim.access_mode == "ReadWriteMany":
        return True
    return all(_resources(spec, name).nodes == 1 for name in spec.stages.present())


VOLUME_REACHES_ALL_NODES: Final = Rule(
    "volume_reaches_all_nodes",
    "checkpoints.claim.accessMode",
    _one_node_suffices,
    "!has(self.checkpoints.claim) || self.checkpoints.claim.accessMode == 'ReadWriteMany' || ("
    + " && ".join(
        f"({_Cel(name).resource('nodes')} == 1 || {_Cel(name).absent})"
        for name in Stages.model_fields
    )
    + ")",
    "only one node can mount it, and a stage runs on several",
    "ReadWriteMany",
)


def _has_gpus_beside(name: str, rule: str, field: str, message: str, allowed: str) -> Rule:
    """An optional resource that makes no sense without GPUs."""
    cel = _Cel(name)
    attribute = to_snake(field)
    return Rule(
        rule,
        f"stages.{name}.resources.gpusPerNode",
        lambda spec: (
            not _stage(spec, name)
            or not getattr(_resources(spec, name), attribute)
            or _resources(spec, name).gpus_per_node > 0
        ),
        f"({cel.has_no_resource(field)}) || {cel.gpus} > 0 || {cel.absent}",
        message,
        allowed,
    )


def devices_are_counted(name: str) -> Rule:
    """A claim template gives a pod gpusPerNode devices."""
    return _has_gpus_beside(
        name,
        "devices_are_counted",
        "deviceClaimTemplate",
        "is 0, and deviceClaimTemplate gives devices",
        "the number of devices that the template gives a pod",
    )


def rdma_serves_gpus(name: str) -> Rule:
    """RDMA devices are of use to GPUs alone."""
    return _has_gpus_beside(
        name,
        "rdma_serves_gpus",
        "rdma",
        "is 0, and RDMA serves GPUs",
        "leave rdma out, or set gpusPerNode",
    )


def rdma_is_not_the_device(name: str) -> Rule:
    """A pod asks for each resource once: the number of one would take the place of the other's.

    Texts are compared where they stand: of one that `orValue` gives, CEL knows no greatest length.
    """
    cel = _Cel(name)
    own, job = f"self.stages.{name}.resources", "self.resources"

    def in_effect(field: str, asked: Callable[[str], str]) -> str:
        return f"({cel.has(f'resources.?{field}')} ? {asked(own)} : {asked(job)})"

    differ = in_effect(
        "rdma",
        lambda rdma: in_effect("device", lambda device: f"{rdma}.rdma.resource != {device}.device"),
    )

    def holds(spec: JobSpec) -> bool:
        if _stage(spec, name) is None:
            return True
        resources = _resources(spec, name)
        return resources.rdma is None or resources.rdma.resource != resources.device

    return Rule(
        "rdma_is_not_the_device",
        f"stages.{name}.resources.rdma.resource",
        holds,
        f"({cel.has_no_resource('rdma')}) || {differ} || {cel.absent}",
        "is the device itself",
        "the network's resource, such as rdma/hca_shared_devices_a",
    )


def _has_beside_command(
    name: str, rule: str, holds: Callable[[JobSpec], bool], cel: str, message: str, allowed: str
) -> Rule:
    """What a stage with a command of its own needs, `holds` and in CEL."""
    return Rule(
        rule,
        f"stages.{name}.command",
        lambda spec: not _stage(spec, name) or _stage(spec, name).command is None or holds(spec),
        cel,
        f"runs a trainer that is not ours, {message}",
        allowed,
    )


def own_trainer_has_an_image(name: str) -> Rule:
    """A command that is not our trainer's needs the image that has it."""
    return _has_beside_command(
        name,
        "own_trainer_has_an_image",
        lambda spec: bool(_stage(spec, name).image or spec.image),
        f"has(self.image) || !{_Cel(name).has('command')} || {_Cel(name).has('image')}",
        "and no image is named",
        "image: the image that has it",
    )


def own_trainer_has_a_volume(name: str) -> Rule:
    """What brings files from an object store and takes them there is our trainer."""
    return _has_beside_command(
        name,
        "own_trainer_has_a_volume",
        lambda spec: spec.checkpoints.uri is None,
        f"!has(self.checkpoints.uri) || !{_Cel(name).has('command')}",
        "which knows no object store",
        "checkpoints.claim or checkpoints.existingClaim in place of checkpoints.uri",
    )


ROLES: Final = tuple(Placement.model_fields)


def _placed(placement: Placement) -> int:
    return sum(getattr(placement, role) or 0 for role in ROLES)


_PPO: Final = _Cel("ppo")
_ROLE_SUM: Final = " + ".join(f"{_PPO.stage}.?placement.?{role}.orValue(0)" for role in ROLES)
PLACEMENT_ADDS_UP: Final = Rule(
    "placement_adds_up",
    "stages.ppo.placement",
    lambda spec: (
        not spec.stages.ppo
        or not spec.stages.ppo.placement
        or _placed(spec.stages.ppo.placement)
        == _resources(spec, "ppo").nodes * _resources(spec, "ppo").gpus_per_node
    ),
    f"!{_PPO.has('placement')} || {_ROLE_SUM} == {_PPO.resource('nodes')} * {_PPO.gpus}",
    "the GPUs of its roles differ from those of the stage",
    "numbers that add up to nodes times gpusPerNode",
)


def _topologies_fit(spec: JobSpec, fits: Any) -> bool:
    stages = spec.stages.present().values()
    own = [stage.resources.topology for stage in stages if stage.resources]
    return all(fits(topology) for topology in [spec.resources.topology, *own] if topology)


def _each_topology(expression: str) -> str:
    """An expression about `t`, asked of the topology of the job and of every stage."""
    places = ["self.resources", *(f"self.stages.{name}.resources" for name in Stages.model_fields)]
    guards = [""] + [
        f"!has(self.stages.{name}) || !has(self.stages.{name}.resources) || "
        for name in Stages.model_fields
    ]
    each = (
        f"({guard}!has({place}.topology) || {expression.replace('t.', f'{place}.topology.')})"
        for place, guard in zip(places, guards, strict=True)
    )
    return f"({' && '.join(each)})"


TOPOLOGY_RULES: Final = (
    Rule(
        "topology_name_is_kais",
        "scheduling.gang",
        lambda spec: (
            spec.scheduling.gang in ("auto", "kai")
            or _topologies_fit(spec, lambda topology: topology.name is None)
        ),
        "self.scheduling.gang in ['auto', 'kai'] || " + _each_topology("!has(t.name)"),
        "is {scheduling.gang}, and topology.name names KAI's Topology object",
        "leave topology.name out, or gang: kai",
    ),
    Rule(
        "kai_topology_has_a_name",
        "scheduling.gang",
        lambda spec: (
            spec.scheduling.gang != "kai"
            or _topologies_fit(spec, lambda topology: topology.name is not None)
        ),
        "self.scheduling.gang != 'kai' || " + _each_topology("has(t.name)"),
        "is kai, and topology.name is missing",
        "topology.name: the Topology object that has the level",
    ),
    Rule(
        "tiers_are_volcanos",
        "scheduling.gang",
        lambda spec: (
            spec.scheduling.gang in ("auto", "volcano")
            or _topologies_fit(spec, lambda topology: not topology.level.isdigit())
        ),
        "self.scheduling.gang in ['auto', 'volcano'] || "
        + _each_topology("!t.level.matches('^[0-9]+$')"),
        "is {scheduling.gang}, and topology.level is a tier's number, which only Volcano knows",
        "topology.level: a node label",
    ),
)

QUEUE_IS_READ: Final = Rule(
    "queue_is_read",
    "scheduling.queue",
    lambda spec: spec.scheduling.queue is None or spec.scheduling.gang in WITH_QUEUES,
    f"!has(self.scheduling.queue) || self.scheduling.gang in {list(WITH_QUEUES)}",
    "is set, and gang {scheduling.gang} has no queues",
    "leave it out, or gang: volcano, kai, kueue or auto",
)

PER_STAGE: Final = (
    every_rank_has_rows,
    processes_follow_gpus,
    devices_are_counted,
    rdma_serves_gpus,
    rdma_is_not_the_device,
    own_trainer_has_an_image,
    own_trainer_has_a_volume,
)

GANG_RULES: Final = (
    *(make(name) for make in PER_STAGE for name in Stages.model_fields),
    VOLUME_REACHES_ALL_NODES,
    PLACEMENT_ADDS_UP,
    *TOPOLOGY_RULES,
    QUEUE_IS_READ,
)
