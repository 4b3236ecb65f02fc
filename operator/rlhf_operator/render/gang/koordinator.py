"""Koordinator: scheduling.sigs.k8s.io/v1alpha1 PodGroup."""

from __future__ import annotations

from rlhf_operator.render.gang.labelled import joined_by_label

KOORDINATOR = joined_by_label(
    "scheduling.sigs.k8s.io/v1alpha1/PodGroup",
    label="pod-group.scheduling.sigs.k8s.io",
    scheduler=lambda _: "koord-scheduler",
)
