"""One pod, as its kubelet, the scheduler and the node controller have described it. Pure.

What the fields mean, and who writes them, is in the Kubernetes API reference; the cases that are
read here were seen on a kubelet and a Job controller of 1.36.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from rlhf_operator.names import COMPLETION_INDEX, CONTAINER_NAME
from rlhf_operator.observed import Pod, PodPhase, parse_result
from rlhf_operator.times import read

Object = dict[str, Any]

REJECTED: Final = re.compile(r"UnexpectedAdmissionError|NodeAffinity|NodeShutdown|OutOf.+")
"""What a kubelet says of a pod that it does not take, or not again after a restart of its own: a
device plug-in is away, the node has changed. It sets no DisruptionTarget then.
"""
STATUS_UNKNOWN: Final = "ContainerStatusUnknown"
UNSEEN_ENDS: Final = (STATUS_UNKNOWN, "Unknown")
"""What a kubelet, and containerd with exit code 255, say of a container that ran when it was last
seen, and is not there any more: its machine was started anew. It sets no DisruptionTarget then.
"""
UNSEEN: Final = "Nobody saw it end: its machine was started anew, or is another now."
INDEX_DIGITS: Final = 10
"""More than any index has; a number of thousands of digits is refused by int()."""
NODE_SILENCE: Final = timedelta(seconds=30)
"""How long after the end of its grace period a pod may still be shown before its node is lost."""
PHASES: Final[Mapping[str, PodPhase]] = {
    "Pending": "Pending",
    "Running": "Running",
    "Succeeded": "Succeeded",
    "Failed": "Failed",
}


def pod(item: Object, now: datetime) -> Pod:
    """One pod, as its kubelet, the scheduler and the node controller have described it."""
    meta, status = item["metadata"], item.get("status") or {}
    phase: PodPhase = PHASES.get(status.get("phase", ""), "Unknown")
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    ended, others = _ends(status)
    if phase == "Failed" and not ended and others:
        ended = _told_of(*others[0])
    if phase == "Failed" and ended.get("exitCode") == 0 and others and not status.get("reason"):
        phase = "Succeeded"  # the trainer, whose work this is; what failed is a webhook's
    text = ended.get("message") or ""
    result = parse_result(text) if text else None
    seen = Pod(
        name=meta["name"],
        completion_index=index_of(meta),
        phase=phase,
        exit_code=ended.get("exitCode"),
        message=text,
        is_disrupted=conditions.get("DisruptionTarget", {}).get("status") == "True",
        finished_at=_unix(ended.get("finishedAt")),
        node=(item.get("spec") or {}).get("nodeName"),
        result=result,
    )
    if phase == "Failed":
        is_rejected = bool(REJECTED.fullmatch(status.get("reason") or ""))
        is_disrupted = seen.is_disrupted or is_rejected or _is_unseen(status, ended)
        failure = _failure(status, ended, conditions)
        return seen._replace(**failure, is_disrupted=is_disrupted)
    if phase in ("Pending", "Running") and seen.node and _is_lost(meta, conditions, now):
        return seen._replace(reason="NodeLost", message="Its node does not answer.")
    if phase == "Pending":
        return seen._replace(**_waiting(meta, status, conditions))
    return seen._replace(outlived_by=_outlived_by(status)) if phase == "Running" else seen


def _outlived_by(status: Object) -> tuple[str, ...]:
    """Containers that a webhook added and that run, where the trainer's own has ended: for them its
    pod goes on, with its devices. Sidecars of Kubernetes' own kind end by themselves."""
    states = {i.get("name"): i.get("state") or {} for i in status.get("containerStatuses") or []}
    if "terminated" not in states.get(CONTAINER_NAME, {}):
        return ()
    return tuple(str(name) for name, state in states.items() if "running" in state)


def index_of(meta: Object) -> int:
    index = (meta.get("annotations") or {}).get(COMPLETION_INDEX, "0")
    return int(index) if index.isdecimal() and len(index) < INDEX_DIGITS else 0


def _ends(status: Object) -> tuple[Object, list[tuple[str, Object]]]:
    """How the trainer's container ended; the names and ends of others that failed, which are a
    webhook's."""
    own: Object = {}
    others: list[tuple[str, Object]] = []
    for group in ("containerStatuses", "initContainerStatuses"):
        for item in status.get(group) or []:
            ended = (item.get("state") or {}).get("terminated") or {}
            if item.get("name") == CONTAINER_NAME:
                own = ended
            elif ended.get("exitCode"):
                others.append((str(item.get("name")), ended))
    return own, others


def _told_of(name: str, ended: Object) -> Object:
    """The end of a pod whose trainer never began, as another container failed. Its exit code means
    nothing to us, whatever ours would mean by that number."""
    head = f"{name}, which a webhook added, ended with exit code {ended['exitCode']}."
    said = f"{head} {ended.get('message') or ''}".strip()
    reason = ended.get("reason") if _says_more(ended) else "ContainerFailed"
    return {"reason": reason, "message": said, "finishedAt": ended.get("finishedAt")}


def _failure(status: Object, ended: Object, conditions: Mapping[str, Object]) -> dict[str, Any]:
    """Reason and message of an end that was no success.

    The pod's own reason (Evicted, DeadlineExceeded, NodeShutdown, Preempting…) is the cluster's
    doing and outranks the container's, of which only OOMKilled says more than the exit code.
    """
    disruption = conditions.get("DisruptionTarget", {})
    if _is_unseen(status, ended) and disruption.get("status") != "True":
        return {"reason": STATUS_UNKNOWN, "message": ended.get("message") or UNSEEN}
    own = status.get("reason") or (ended.get("reason") if _says_more(ended) else None)
    if own is None and disruption.get("status") == "True":
        own = disruption.get("reason")
    message = ended.get("message") or status.get("message") or disruption.get("message") or ""
    return {"reason": own, "message": message}


def _is_unseen(status: Object, ended: Object) -> bool:
    """Whether nobody saw it end. What its kubelet itself ended has a reason of the pod's."""
    return not status.get("reason") and ended.get("reason") in UNSEEN_ENDS


def _says_more(ended: Object) -> bool:
    return ended.get("reason") not in (None, "Error", "Completed")


def _waiting(meta: Object, status: Object, conditions: Mapping[str, Object]) -> dict[str, Any]:
    """Why a pod does not run yet: the scheduler's words, or those of the kubelet. What was said of
    one that is to go holds no longer."""
    if "deletionTimestamp" in meta:
        return {
            "reason": "Terminating",
            "message": f"{meta['name']} was deleted, and has yet to go",
        }
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        reason = scheduled.get("reason") or "Unschedulable"
        return {"reason": reason, "message": scheduled.get("message") or ""}
    for group in ("initContainerStatuses", "containerStatuses"):
        for item in status.get(group) or []:
            waiting = (item.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
                return {"reason": waiting["reason"], "message": waiting.get("message") or ""}
    return {}


def _is_lost(meta: Object, conditions: Mapping[str, Object], now: datetime) -> bool:
    """Whether the node has stopped to answer, so that nobody can see whether the pod still runs.

    The node controller sets Ready to False and leaves ContainersReady, which only the kubelet
    writes; or the pod's deletion is overdue, which only its kubelet can complete. Where a webhook
    gave the pod a readiness gate, the kubelet itself says so with a reason of its own.
    """
    due = meta.get("deletionTimestamp")  # when the grace period ends
    if due and now > read(due) + NODE_SILENCE:
        return True
    ready, containers = conditions.get("Ready", {}), conditions.get("ContainersReady", {})
    is_gated = ready.get("reason") == "ReadinessGatesNotReady"
    is_unready = ready.get("status") == "False" and not is_gated
    return is_unready and containers.get("status") == "True"


def next_look(pods: Iterable[Object], now: datetime) -> datetime | None:
    """When a pod that is being deleted will be overdue, which no event tells."""
    due = [
        read(d) + NODE_SILENCE for item in pods if (d := item["metadata"].get("deletionTimestamp"))
    ]
    return min((at for at in due if at > now), default=None)


def _unix(text: str | None) -> float | None:
    at = moment(text)
    return at.timestamp() if at else None


def moment(text: str | None) -> datetime | None:
    return read(text) if text else None
