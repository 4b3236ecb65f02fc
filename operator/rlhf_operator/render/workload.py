"""The Indexed Job: one gang of pods that starts, runs and ends as a whole."""

from __future__ import annotations

from typing import Final

from rlhf_api.resources import Resources
from rlhf_api.run import PREPARE

from rlhf_operator.inputs import prepare_resources
from rlhf_operator.render.defaults import on_device_nodes
from rlhf_operator.render.metadata import (
    AttemptKey,
    Object,
    attempt_annotations,
    attempt_labels,
    metadata,
)
from rlhf_operator.render.platform import Platform
from rlhf_operator.render.pod import deadline, pod_spec
from rlhf_operator.render.volumes import Contents

STAYS: Final = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}
"""Annotations of pods that autoscalers do not move to save a node: that would end the whole gang,
and the next one is not there before minutes have passed, on as many nodes."""


def resources_of(key: AttemptKey, platform: Platform) -> Resources:
    """What the attempt asks for; `prepare` needs no devices."""
    spec = key.job.spec
    if key.stage == PREPARE:
        return prepare_resources(spec)
    return on_device_nodes(spec.resources_of(key.stage), platform.defaults)


def workload(
    key: AttemptKey, contents: Contents, resources: Resources, platform: Platform
) -> Object:
    """The Job.

    backoffLimit 0: the first pod that fails ends the attempt, and what to do next is the plan's to
    decide. No podFailurePolicy: it could only replace single pods of a gang, which cannot go on
    without the others anyway; exit codes are read from the pods. No ttlSecondsAfterFinished: the
    operator deletes an ended attempt only once its end is written down.
    """
    spec: Object = {
        "completionMode": "Indexed",
        "completions": resources.nodes,
        "parallelism": resources.nodes,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "template": {
            "metadata": {
                "labels": attempt_labels(key),
                "annotations": attempt_annotations(key) | STAYS,
            },
            "spec": pod_spec(key, contents, resources, platform),
        },
    }
    if seconds := deadline(key):
        spec["activeDeadlineSeconds"] = seconds
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata(key), "spec": spec}
