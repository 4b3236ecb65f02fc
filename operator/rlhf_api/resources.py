"""What a stage asks of the cluster: pods, devices, memory, and on which nodes."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from rlhf_api.affinity import Affinity, Toleration
from rlhf_api.base import (
    ATOMIC,
    QUALIFIED,
    SUBDOMAIN,
    Contract,
    LabelKey,
    LabelValue,
    ObjectName,
    Quantity,
)

RESOURCE_NAME: Final = f"^{SUBDOMAIN}/{QUALIFIED}$"
"""An extended resource; without a domain it would be the node's own: `cpu`, `memory`."""

NODES: Final = Field(ge=1, le=10_000, description="Pods of the gang.")
GPUS_PER_NODE: Final = Field(
    ge=0, le=64, description="Devices, and so processes, per pod; 0 trains on the CPU."
)
PROCESSES_PER_NODE: Final = Field(
    ge=1, le=64, description="Processes per pod where gpusPerNode is 0."
)
DEVICE: Final = Field(
    pattern=RESOURCE_NAME,
    max_length=253,
    description="Extended resource that stands for one device.",
    examples=["nvidia.com/gpu", "nvidia.com/mig-3g.40gb", "amd.com/gpu", "huawei.com/Ascend910"],
)
SHM_SIZE: Final = Field(description="Size of /dev/shm, which NCCL and data loaders use.")


class RDMA(Contract):
    """Network devices that GPUs of different nodes reach each other by (InfiniBand, RoCE, EFA)."""

    resource: str = Field(
        pattern=RESOURCE_NAME,
        max_length=253,
        description="Extended resource of the RDMA device plug-in.",
        examples=["rdma/hca_shared_devices_a", "nvidia.com/hostdev", "vpc.amazonaws.com/efa"],
    )
    count: int = Field(default=1, ge=1, le=64, description="Network devices per pod.")


class Topology(Contract):
    """Keeps all pods of a gang in one domain: a rack, a block, an NVLink domain."""

    level: LabelKey = Field(
        description="Node label whose value names the domain; with Volcano, the name or number of "
        "a HyperNode tier as well.",
        examples=["topology.kubernetes.io/zone", "nvidia.com/gpu.clique"],
    )
    mode: Literal["required", "preferred"] = Field(
        default="required",
        description="Whether the gang waits for a domain that holds it, or starts without.",
    )
    name: ObjectName | None = Field(
        default=None, description="With KAI: the Topology object that has the level."
    )


class ResourceOverrides(Contract):
    """spec.resources with every field optional: what is set replaces the job's."""

    nodes: Annotated[int | None, NODES] = None
    gpus_per_node: Annotated[int | None, GPUS_PER_NODE] = None
    processes_per_node: Annotated[int | None, PROCESSES_PER_NODE] = None
    device: Annotated[str | None, DEVICE] = None
    device_claim_template: ObjectName | None = Field(
        default=None,
        description="ResourceClaimTemplate (dynamic resource allocation) that gives a pod its "
        "gpusPerNode devices, in place of `device`.",
    )
    rdma: RDMA | None = Field(default=None, description="RDMA network devices; default: none.")
    cpu: Quantity | None = Field(
        default=None, description="CPU request per pod.", examples=["16", "500m"]
    )
    memory: Quantity | None = Field(
        default=None, description="Memory request and limit per pod.", examples=["256Gi"]
    )
    shm_size: Annotated[Quantity | None, SHM_SIZE] = None
    node_selector: dict[str, LabelValue] | None = Field(
        default=None,
        max_length=64,
        description="Labels a node must have.",
        json_schema_extra=ATOMIC,
    )
    tolerations: list[Toleration] | None = Field(
        default=None, max_length=64, description="Taints that are accepted."
    )
    affinity: Affinity | None = Field(
        default=None, description="Which nodes, and which other pods to stay away from."
    )
    topology: Topology | None = Field(
        default=None, description="Keeps the gang in one rack, block or NVLink domain."
    )
    priority_class: ObjectName | None = Field(
        default=None, description="PriorityClass of the pods."
    )
    runtime_class: ObjectName | None = Field(default=None, description="RuntimeClass of the pods.")
    service_account: ObjectName | None = Field(
        default=None, description="Service account of the pods; its token is not mounted."
    )


class Resources(ResourceOverrides):
    """What each stage's gang of pods asks for."""

    nodes: Annotated[int, NODES] = 1
    gpus_per_node: Annotated[int, GPUS_PER_NODE] = 0
    processes_per_node: Annotated[int, PROCESSES_PER_NODE] = 1
    device: Annotated[str, DEVICE] = "nvidia.com/gpu"
    shm_size: Annotated[Quantity, SHM_SIZE] = "8Gi"

    def overridden_by(self, overrides: ResourceOverrides | None) -> Resources:
        """These resources with what a stage sets in place of the job's."""
        if overrides is None:
            return self
        names = ResourceOverrides.model_fields
        given = {name: getattr(overrides, name) for name in names}
        return self.model_copy(update={k: v for k, v in given.items() if v is not None})

    @property
    def ranks_per_node(self) -> int:
        """Processes torchrun starts in each pod: one per GPU."""
        return self.gpus_per_node or self.processes_per_node


class RetryPolicy(Contract):
    """Faults draw on the budget; disruptions are free; configuration errors are final."""

    max_faults: int = Field(
        default=3, ge=0, le=100, description="Failed attempts that are retried."
    )
    backoff_seconds: float = Field(
        default=10.0, ge=0, le=3600, description="Pause after the first fault; doubles."
    )
    max_backoff_seconds: float = Field(default=300.0, ge=0, le=86400, description="Longest pause.")
    deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=31_536_000,
        description="Time limit of one attempt, from the start of its Job.",
    )
