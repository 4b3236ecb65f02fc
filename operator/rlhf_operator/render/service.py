"""The headless Service that gives the pods of a gang their DNS names."""

from __future__ import annotations

from typing import Final

from rlhf_operator.names import service_name
from rlhf_operator.render.metadata import AttemptKey, Object, attempt_labels, metadata

RENDEZVOUS_PORT: Final = 29500


def service(key: AttemptKey) -> Object:
    """Publishes addresses before pods are ready: they are ready only once they have met."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(key) | {"name": service_name(key.name)},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": attempt_labels(key),
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT, "protocol": "TCP"}],
        },
    }
