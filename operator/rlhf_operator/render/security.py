"""What every pod of ours keeps to: the restricted Pod Security Standard, and no token unasked."""

from __future__ import annotations

from typing import Final

from rlhf_operator.render.metadata import Object

NO_DEVICES: Final = {"NVIDIA_VISIBLE_DEVICES": "void"}
"""For pods that asked for none: by the image's own value, `all`, NVIDIA's container runtime, where
it is a node's default, would give them every GPU of the node, in use or not."""
USER_ID: Final = 1000
"""The user that the trainer image runs as."""


def pod_security() -> Object:
    """Fields of a pod's specification."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def container_security() -> Object:
    """The `securityContext` of a container."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
