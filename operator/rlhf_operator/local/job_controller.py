"""What the Job controller makes of an Indexed Job."""

from __future__ import annotations

from typing import Any

from rlhf_operator.names import COMPLETION_INDEX

Object = dict[str, Any]


def pod_of(job: Object, index: int) -> Object:
    """One pod of the Job; its containers are told their index by the downward API."""
    name = f"{job['metadata']['name']}-{index}"
    template = job["spec"]["template"]
    given = template.get("metadata", {})
    metadata = {
        "name": name,
        "namespace": job["metadata"]["namespace"],
        "labels": {**given.get("labels", {}), COMPLETION_INDEX: str(index)},
        "annotations": {**given.get("annotations", {}), COMPLETION_INDEX: str(index)},
    }
    containers = [_with_index(item) for item in template["spec"]["containers"]]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {**template["spec"], "hostname": name, "containers": containers},
    }


def _with_index(container: Object) -> Object:
    source = {"fieldRef": {"fieldPath": f"metadata.labels['{COMPLETION_INDEX}']"}}
    variable = {"name": "JOB_COMPLETION_INDEX", "valueFrom": source}
    return {**container, "env": [*container.get("env", []), variable]}
