"""What a kubelet writes into a pod's status (kubelet 1.36: kubelet_pods.go, status/generate.go).

Pure. The result is a strategic merge patch: conditions that others own, PodScheduled and an
eviction's DisruptionTarget among them, stay as they are.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

Object = dict[str, Any]

CREATING: Final = "ContainerCreating"
STATUS_UNKNOWN: Final = "ContainerStatusUnknown"


class Exit(NamedTuple):
    """How a container ended."""

    exit_code: int
    message: str = ""  # its termination message
    reason: str = ""  # OOMKilled, …; else it follows from the code
    started_at: float | None = None  # unix seconds
    finished_at: float | None = None


class Verdict(NamedTuple):
    """Why the kubelet itself ends a pod; it becomes the pod's own reason and message."""

    reason: str  # Evicted, DeadlineExceeded
    message: str
    is_disruption: bool = False  # adds the condition DisruptionTarget
    grace: float = 0.0  # seconds


EVICTED: Final = Verdict(
    "Evicted", "The node was low on resource: memory. ", is_disruption=True, grace=0.0
)


def rfc3339(seconds: float) -> str:
    """A time as Kubernetes writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def creating(pod: Object, now: float, reason: str = CREATING, message: str = "") -> Object:
    """Accepted by the node; its containers wait."""
    state = {"reason": reason} | ({"message": message} if message else {})
    return _status(pod, "Pending", {"waiting": state}, now, has_network=reason != CREATING)


def running(pod: Object, now: float, started_at: float) -> Object:
    """All containers run."""
    return _status(pod, "Running", {"running": {"startedAt": rfc3339(started_at)}}, now)


def ended(pod: Object, now: float, end: Exit, verdict: Verdict | None = None) -> Object:
    """All containers have ended. What the kubelet ended has failed, whatever its exit code."""
    is_success = end.exit_code == 0 and verdict is None
    state: Object = {
        "exitCode": end.exit_code,
        "reason": end.reason or ("Completed" if end.exit_code == 0 else "Error"),
        "containerID": container_id(pod),
        "startedAt": rfc3339(end.started_at) if end.started_at else None,
        "finishedAt": rfc3339(end.finished_at) if end.finished_at else None,
    }
    if end.message:
        state["message"] = end.message
    phase = "Succeeded" if is_success else "Failed"
    return _judged(_status(pod, phase, {"terminated": state}, now), pod, now, verdict)


def never_started(pod: Object, now: float, verdict: Verdict | None = None) -> Object:
    """Ended before a container was made: the pod has failed, its containers still wait."""
    status = _status(pod, "Failed", {"waiting": {"reason": CREATING}}, now)
    return _judged(status, pod, now, verdict)


def _judged(status: Object, pod: Object, now: float, verdict: Verdict | None) -> Object:
    if verdict is None:
        return status
    status |= {"reason": verdict.reason, "message": verdict.message}
    if verdict.is_disruption:
        status["conditions"].append(
            _condition(pod, now, "DisruptionTarget", True, "TerminationByKubelet", verdict.message)
        )
    return status


def _status(
    pod: Object, phase: str, state: Object, now: float, *, has_network: bool = True
) -> Object:
    is_over = phase in ("Succeeded", "Failed")
    host = address("10.64", pod["spec"]["nodeName"])
    status: Object = {
        "phase": phase,
        "startTime": pod.get("status", {}).get("startTime") or rfc3339(now),
        "hostIP": host,
        "hostIPs": [{"ip": host}],
        "conditions": [
            _condition(pod, now, "PodReadyToStartContainers", has_network and not is_over),
            *_readiness(pod, phase, now),
        ],
        "containerStatuses": [
            _container(pod, container, state, phase) for container in pod["spec"]["containers"]
        ],
    }
    if generation := pod["metadata"].get("generation"):
        status["observedGeneration"] = generation
    if has_network:
        own = address("10.128", pod["metadata"]["uid"])
        status |= {"podIP": own, "podIPs": [{"ip": own}]}
    return status


def _readiness(pod: Object, phase: str, now: float) -> list[Object]:
    """Initialized, Ready and ContainersReady."""
    names = " ".join(item["name"] for item in pod["spec"]["containers"])
    reason, message = {
        "Pending": ("ContainersNotReady", f"containers with unready status: [{names}]"),
        "Running": ("", ""),
        "Succeeded": ("PodCompleted", ""),
        "Failed": ("PodFailed", ""),
    }[phase]
    initialized = "PodCompleted" if phase == "Succeeded" else ""
    return [
        _condition(pod, now, "Initialized", True, initialized),
        _condition(pod, now, "Ready", phase == "Running", reason, message),
        _condition(pod, now, "ContainersReady", phase == "Running", reason, message),
    ]


def _condition(
    pod: Object, now: float, kind: str, holds: bool, reason: str = "", message: str = ""
) -> Object:
    """A condition; it keeps the time of its last transition while its status stays the same.

    `None` removes what an earlier report said: the patch is merged.
    """
    before: Object = next(
        (item for item in pod.get("status", {}).get("conditions") or [] if item["type"] == kind), {}
    )
    value = "True" if holds else "False"
    unchanged = before.get("status") == value
    return {
        "type": kind,
        "status": value,
        "reason": reason or None,
        "message": message or None,
        "observedGeneration": pod["metadata"].get("generation"),
        "lastProbeTime": None,
        "lastTransitionTime": before["lastTransitionTime"] if unchanged else rfc3339(now),
    }


def _container(pod: Object, container: Object, state: Object, phase: str) -> Object:
    was_made = "waiting" not in state
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": f"{container['image']}@{_digest(container['image'])}" if was_made else "",
        "ready": phase == "Running",
        "started": phase == "Running",
        "restartCount": 0,
        "lastState": {},
        "state": state,
    } | ({"containerID": container_id(pod)} if was_made else {})


def container_id(pod: Object) -> str:
    """Of the pod's one run: nothing is restarted in place."""
    return f"containerd://{_digest(pod['metadata']['uid']).removeprefix('sha256:')}"


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def address(network: str, key: str) -> str:
    """An address in a /16 that follows from the key."""
    high, low = hashlib.sha256(key.encode()).digest()[:2]
    return f"{network}.{high}.{low}"
