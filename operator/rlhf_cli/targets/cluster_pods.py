"""What a pod says of itself, in the few words that a table has room for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlhf_operator.names import COMPLETION_INDEX, CONTAINER_NAME, LABEL_ATTEMPT, LABEL_STAGE

from rlhf_cli.targets.target import Object, PodView


def pod_views(pods: Iterable[Object]) -> list[PodView]:
    """Those of stages, by stage, attempt and index."""
    views = [view for pod in pods if (view := pod_view(pod))]
    return sorted(views, key=lambda view: (view.stage, view.attempt, view.completion_index))


def pod_view(pod: Object) -> PodView | None:
    """The view of a job's pod; None for a pod that is no stage's."""
    meta, status = pod["metadata"], pod.get("status") or {}
    labels = meta.get("labels") or {}
    if LABEL_STAGE not in labels or not labels.get(LABEL_ATTEMPT, "").isdigit():
        return None
    phase = status.get("phase", "Pending")
    is_over = phase in ("Succeeded", "Failed")
    shown = "Terminating" if meta.get("deletionTimestamp") and not is_over else phase
    return PodView(
        name=meta["name"],
        stage=labels[LABEL_STAGE],
        attempt=int(labels[LABEL_ATTEMPT]),
        completion_index=int(labels.get(COMPLETION_INDEX, 0)),
        phase=shown,
        node=pod["spec"].get("nodeName", ""),
        reason=_reason(status),
        is_over=is_over,
    )


def _reason(status: dict[str, Any]) -> str:
    """The container's state where it tells more than the phase, else the pod's own reason."""
    shown = status.get("containerStatuses") or []
    for container in sorted(shown, key=lambda item: item.get("name") != CONTAINER_NAME):
        state = container.get("state") or {}
        if waiting := state.get("waiting"):
            return str(waiting.get("reason") or "")
        ended = state.get("terminated")
        if ended and ended.get("exitCode"):
            return f"{ended.get('reason') or 'Error'} ({ended['exitCode']})"
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("reason") or "")
    return str(status.get("reason") or "")
