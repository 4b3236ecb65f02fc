"""Node affinity, pod anti-affinity and tolerations, in their Kubernetes form.

No field of a list's item has a default: tools that compare lists as wholes would see it as drift.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from rlhf_api.base import ATOMIC, Contract, LabelKey, LabelValue, Name

Weight = Annotated[int, Field(ge=1, le=100)]


class Toleration(Contract):
    """As core/v1 Toleration."""

    key: LabelKey | None = Field(default=None, description="Taint key; default: every key.")
    operator: Literal["Equal", "Exists"] | None = Field(
        default=None, description="How the taint's value is compared; default: Equal."
    )
    value: LabelValue | None = Field(default=None, description="Taint value, with Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Taint effect; default: every effect."
    )
    toleration_seconds: int | None = Field(
        default=None,
        ge=0,
        le=2**31 - 1,
        description="With NoExecute: seconds that a pod stays; default: for as long as it runs.",
    )


class NodeRequirement(Contract):
    """As core/v1 NodeSelectorRequirement."""

    key: LabelKey = Field(description="Node label.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = Field(
        description="How the label's value is compared."
    )
    values: list[LabelValue] | None = Field(
        default=None,
        max_length=64,
        description="Values for In and NotIn; one whole number for Gt and Lt.",
    )


class NodeTerm(Contract):
    """As core/v1 NodeSelectorTerm: all of its requirements hold."""

    model_config = ConfigDict(json_schema_extra=ATOMIC)

    match_expressions: list[NodeRequirement] = Field(
        min_length=1, max_length=16, description="Requirements on a node's labels."
    )


class NodeTerms(Contract):
    """As core/v1 NodeSelector: one of its terms holds."""

    model_config = ConfigDict(json_schema_extra=ATOMIC)

    node_selector_terms: list[NodeTerm] = Field(
        min_length=1, max_length=16, description="Terms, of which one has to hold."
    )


class PreferredNodeTerm(Contract):
    """As core/v1 PreferredSchedulingTerm."""

    weight: Weight = Field(description="How much the term counts.")
    preference: NodeTerm = Field(description="What is preferred.")


class NodeAffinity(Contract):
    """As core/v1 NodeAffinity."""

    required_during_scheduling_ignored_during_execution: NodeTerms | None = Field(
        default=None, description="Nodes that come into question."
    )
    preferred_during_scheduling_ignored_during_execution: list[PreferredNodeTerm] | None = Field(
        default=None, max_length=16, description="Nodes that are preferred among them."
    )


class LabelRequirement(Contract):
    """As metav1.LabelSelectorRequirement."""

    key: LabelKey = Field(description="Pod label.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(
        description="How the label's value is compared."
    )
    values: list[LabelValue] | None = Field(
        default=None, max_length=64, description="Values for In and NotIn."
    )


class LabelSelector(Contract):
    """As metav1.LabelSelector."""

    model_config = ConfigDict(json_schema_extra=ATOMIC)

    match_labels: dict[str, LabelValue] | None = Field(
        default=None, max_length=32, description="Labels a pod has."
    )
    match_expressions: list[LabelRequirement] | None = Field(
        default=None, max_length=16, description="Requirements on a pod's labels."
    )


class PodTerm(Contract):
    """As core/v1 PodAffinityTerm."""

    label_selector: LabelSelector = Field(description="Pods to stay away from.")
    topology_key: LabelKey = Field(
        description="Node label whose value says what counts as the same place.",
        examples=["kubernetes.io/hostname"],
    )
    namespaces: list[Name] | None = Field(
        default=None, max_length=32, description="Namespaces of those pods; default: the job's."
    )


class PreferredPodTerm(Contract):
    """As core/v1 WeightedPodAffinityTerm."""

    weight: Weight = Field(description="How much the term counts.")
    pod_affinity_term: PodTerm = Field(description="What is preferred.")


class PodAntiAffinity(Contract):
    """As core/v1 PodAntiAffinity."""

    required_during_scheduling_ignored_during_execution: list[PodTerm] | None = Field(
        default=None, max_length=16, description="Pods never to share a place with."
    )
    preferred_during_scheduling_ignored_during_execution: list[PreferredPodTerm] | None = Field(
        default=None, max_length=16, description="Pods rather not to share a place with."
    )


class Affinity(Contract):
    """As core/v1 Affinity; pods of a gang are kept together by `topology`."""

    node_affinity: NodeAffinity | None = Field(default=None, description="Which nodes.")
    pod_anti_affinity: PodAntiAffinity | None = Field(
        default=None, description="Which other pods to stay away from."
    )
