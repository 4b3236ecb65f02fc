"""scheduler-plugins coscheduling: scheduling.x-k8s.io/v1alpha1 PodGroup.

All pods of a group need one priority: they have it, as they come from one template.
"""

from __future__ import annotations

from rlhf_operator.render.gang.labelled import joined_by_label

COSCHEDULING = joined_by_label(
    "scheduling.x-k8s.io/v1alpha1/PodGroup",
    label="scheduling.x-k8s.io/pod-group",
    scheduler=lambda pods: pods.platform.coscheduling_profile,
)
