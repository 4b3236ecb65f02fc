"""The events of a kubelet that somebody may look for."""

from __future__ import annotations

import time
import uuid

from cluster.kubelet.api import Api, Object
from cluster.kubelet.status import rfc3339


async def failed_mount(api: Api, pod: Object, message: str) -> None:
    """A volume cannot be set up; the status says no more than ContainerCreating."""
    meta = pod["metadata"]
    now = rfc3339(time.time())
    await api.post(
        f"/api/v1/namespaces/{meta['namespace']}/events",
        {
            "metadata": {"name": f"{meta['name']}.{uuid.uuid4().hex[:16]}"},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": meta["namespace"],
                "name": meta["name"],
                "uid": meta["uid"],
            },
            "type": "Warning",
            "reason": "FailedMount",
            "message": message,
            "source": {"component": "kubelet", "host": pod["spec"]["nodeName"]},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        },
    )
