"""What a stage asks of the cluster."""

from __future__ import annotations

from pydantic import Field

from rlhf_api.base import Contract, Name, Quantity

RESOURCE_NAME = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"


class Toleration(Contract):
    """As in Kubernetes' core/v1 Toleration."""

    key: str | None = Field(default=None, description="Taint key; default: every key.")
    operator: str = Field(
        default="Equal", pattern="^(Equal|Exists)$", description="Equal or Exists."
    )
    value: str | None = Field(default=None, description="Taint value, with Equal.")
    effect: str | None = Field(
        default=None,
        pattern="^(NoSchedule|PreferNoSchedule|NoExecute)$",
        description="Default: every effect.",
    )
    toleration_seconds: int | None = Field(
        default=None, ge=0, description="Seconds, with NoExecute."
    )


class ResourceOverrides(Contract):
    """spec.resources with every field optional: what is set replaces the job's."""

    nodes: int | None = Field(default=None, ge=1, le=10_000, description="Pods of the gang.")
    gpus_per_node: int | None = Field(
        default=None, ge=0, le=64, description="Devices, and processes, per pod."
    )
    processes_per_node: int | None = Field(
        default=None, ge=1, le=64, description="Processes per pod where gpusPerNode is 0."
    )
    device: str | None = Field(
        default=None, pattern=RESOURCE_NAME, max_length=253, description="Extended resource."
    )
    cpu: Quantity | None = Field(default=None, description="CPU request per pod.")
    memory: Quantity | None = Field(default=None, description="Memory request and limit per pod.")
    shm_size: Quantity | None = Field(default=None, description="Size of /dev/shm.")


class Resources(Contract):
    """Devices and memory of one stage's gang of pods."""

    nodes: int = Field(default=1, ge=1, le=10_000, description="Pods of the gang.")
    gpus_per_node: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Devices, and so processes, per pod; 0 trains on the CPU.",
    )
    processes_per_node: int = Field(
        default=1, ge=1, le=64, description="Processes per pod where gpusPerNode is 0."
    )
    device: str = Field(
        default="nvidia.com/gpu",
        pattern=RESOURCE_NAME,
        max_length=253,
        description="Extended resource that stands for one device.",
        examples=[
            "nvidia.com/gpu",
            "nvidia.com/mig-3g.40gb",
            "amd.com/gpu",
            "huawei.com/Ascend910",
        ],
    )
    cpu: Quantity | None = Field(
        default=None, description="CPU request per pod.", examples=["16", "500m"]
    )
    memory: Quantity | None = Field(
        default=None, description="Memory request and limit per pod.", examples=["256Gi"]
    )
    shm_size: Quantity = Field(
        default="8Gi", description="Size of /dev/shm, which NCCL and data loaders use."
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels a node must have."
    )
    tolerations: list[Toleration] = Field(
        default_factory=list, description="Taints that are accepted.", max_length=64
    )
    priority_class: Name | None = Field(default=None, description="PriorityClass of the pods.")
    runtime_class: Name | None = Field(default=None, description="RuntimeClass of the pods.")
    service_account: Name | None = Field(default=None, description="Service account of the pods.")

    def overridden_by(self, overrides: ResourceOverrides | None) -> Resources:
        """These resources with what a stage sets in place of the job's."""
        if overrides is None:
            return self
        return self.model_copy(update=overrides.model_dump(exclude_none=True, by_alias=False))

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
        default=None, ge=1, description="Time limit of one attempt."
    )
