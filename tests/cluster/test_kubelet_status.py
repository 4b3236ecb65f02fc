"""The status of pods, as the kubelet of Kubernetes 1.36 writes it."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.kubelet import status
from cluster.kubelet.status import EVICTED, Exit, Verdict

NOW = 1_800_000_000.0
LATER = NOW + 60
STAMP = "2027-01-15T08:00:00Z"


def a_pod(**given: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": "n", "uid": "u-1", "generation": 1},
        "spec": {"nodeName": "node-1", "containers": [{"name": "trainer", "image": "i:1"}]},
        "status": given,
    }


def conditions(report: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    return {item["type"]: (item["status"], item["reason"]) for item in report["conditions"]}


def state(report: dict[str, Any]) -> dict[str, Any]:
    (container,) = report["containerStatuses"]
    found: dict[str, Any] = container["state"]
    return found


def test_a_pod_that_is_being_created_is_pending_without_an_address() -> None:
    report = status.creating(a_pod(), NOW)
    assert report["phase"] == "Pending"
    assert report["startTime"] == STAMP
    assert "podIP" not in report
    assert state(report) == {"waiting": {"reason": "ContainerCreating"}}
    assert conditions(report) == {
        "PodReadyToStartContainers": ("False", None),
        "Initialized": ("True", None),
        "Ready": ("False", "ContainersNotReady"),
        "ContainersReady": ("False", "ContainersNotReady"),
    }
    assert report["conditions"][2]["message"] == "containers with unready status: [trainer]"


def test_a_container_that_cannot_be_made_waits_with_the_reason() -> None:
    report = status.creating(a_pod(), NOW, "CreateContainerConfigError", 'secret "s" not found')
    assert state(report)["waiting"] == {
        "reason": "CreateContainerConfigError",
        "message": 'secret "s" not found',
    }
    assert conditions(report)["PodReadyToStartContainers"] == ("True", None)


def test_a_running_pod_is_ready() -> None:
    report = status.running(a_pod(), NOW, NOW)
    assert report["phase"] == "Running"
    assert set(conditions(report).values()) == {("True", None)}
    assert state(report) == {"running": {"startedAt": STAMP}}
    assert report["containerStatuses"][0]["ready"] is True
    assert report["podIP"] == report["podIPs"][0]["ip"]
    assert report["hostIP"] == report["hostIPs"][0]["ip"]


@pytest.mark.parametrize(
    ("end", "phase", "reason", "ready"),
    [
        (Exit(0), "Succeeded", "Completed", "PodCompleted"),
        (Exit(64), "Failed", "Error", "PodFailed"),
        (Exit(137, reason="OOMKilled"), "Failed", "OOMKilled", "PodFailed"),
    ],
)
def test_the_end_of_a_container_is_the_end_of_its_pod(
    end: Exit, phase: str, reason: str, ready: str
) -> None:
    report = status.ended(a_pod(), NOW, end._replace(message="why"))
    assert report["phase"] == phase
    terminated = state(report)["terminated"]
    assert (terminated["exitCode"], terminated["reason"]) == (end.exit_code, reason)
    assert terminated["message"] == "why"
    assert terminated["containerID"].startswith("containerd://")
    assert conditions(report)["Ready"] == ("False", ready)
    assert conditions(report)["ContainersReady"] == ("False", ready)
    assert conditions(report)["PodReadyToStartContainers"] == ("False", None)
    assert "reason" not in report


def test_an_evicted_pod_has_failed_whatever_its_exit_code() -> None:
    report = status.ended(a_pod(), NOW, Exit(0), EVICTED)
    assert (report["phase"], report["reason"]) == ("Failed", "Evicted")
    assert "low on resource: memory" in report["message"]
    assert conditions(report)["DisruptionTarget"] == ("True", "TerminationByKubelet")


def test_a_deadline_is_no_disruption() -> None:
    report = status.never_started(a_pod(), NOW, Verdict("DeadlineExceeded", "too long"))
    assert (report["phase"], report["reason"]) == ("Failed", "DeadlineExceeded")
    assert "DisruptionTarget" not in conditions(report)
    assert state(report) == {"waiting": {"reason": "ContainerCreating"}}


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    first = status.running(a_pod(), NOW, NOW)
    last = status.ended(a_pod(**first), LATER, Exit(0))
    times = {item["type"]: item["lastTransitionTime"] for item in last["conditions"]}
    assert times["Initialized"] == STAMP
    assert times["Ready"] == status.rfc3339(LATER)
    assert last["startTime"] == STAMP
