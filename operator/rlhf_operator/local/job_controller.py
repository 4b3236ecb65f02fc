"""What the Job controller makes of an Indexed Job."""

from __future__ import annotations

from typing import Any, Final

Object = dict[str, Any]

INDEX: Final = "batch.kubernetes.io/job-completion-index"


def pod_of(job: Object, index: int) -> Object:
    """One pod of the Job; its containers are told their index by the downward API."""
    name = f"{job['metadata']['name']}-{index}"
    template = job["spec"]["template"]
    given = template.get("metadata", {})
    metadata = {
        "name": name,
        "namespace": job["metadata"]["namespace"],
        "labels": {**given.get("labels", {}), INDEX: str(index)},
        "annotations": {**given.get("annotations", {}), INDEX: str(index)},
    }
    containers = [_with_index(item) for item in template["spec"]["containers"]]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {**template["spec"], "hostname": name, "containers": containers},
    }


def _with_index(container: Object) -> Object:
    source = {"fieldRef": {"fieldPath": f"metadata.labels['{INDEX}']"}}
    variable = {"name": "JOB_COMPLETION_INDEX", "valueFrom": source}
    return {**container, "env": [*container.get("env", []), variable]}
