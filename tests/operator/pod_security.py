"""The restricted Pod Security Standard, and what else every pod of ours promises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

Object = dict[str, Any]

VOLUMES: Final = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip
"""Kinds of volume that the restricted profile allows (images since Kubernetes 1.33)."""


def violations(pod: Object) -> list[str]:
    """What a pod's spec does that it must not; empty for a good one."""
    return [*_of_the_standard(pod), *_of_our_own(pod)]


def _of_the_standard(pod: Object) -> Iterator[str]:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards, restricted."""
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield name
    context = pod.get("securityContext", {})
    for volume in pod.get("volumes", []):
        for kind in set(volume) - {"name"} - VOLUMES:
            yield f"volume {kind}"
    for container in pod["containers"] + pod.get("initContainers", []):
        yield from _of_a_container({**context, **container.get("securityContext", {})})
        if any("hostPort" in port for port in container.get("ports", [])):
            yield "hostPort"


def _of_a_container(context: Object) -> Iterator[str]:
    """`context` is the container's, over the pod's."""
    if context.get("privileged"):
        yield "privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
        yield "root"
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccomp"
    capabilities = context.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "capabilities are kept"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "capabilities are added"
    if context.get("procMount", "Default") != "Default" or context.get("sysctls"):
        yield "procMount or sysctls"


def _of_our_own(pod: Object) -> Iterator[str]:
    if pod.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken"
    if pod.get("enableServiceLinks") is not False:
        yield "enableServiceLinks"
    if not pod.get("activeDeadlineSeconds"):
        yield "activeDeadlineSeconds"
    for volume in pod.get("volumes", []):
        if "emptyDir" in volume and not volume["emptyDir"].get("sizeLimit"):
            yield "emptyDir without a size"
    writable = {"checkpoints", "tmp", "shm"}
    for container in pod["containers"]:
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield "writable root"
        for mount in container["volumeMounts"]:
            if not mount.get("readOnly") and mount["name"] not in writable:
                yield f"writable {mount['mountPath']}"
