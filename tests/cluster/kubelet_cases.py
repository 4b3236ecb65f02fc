"""Pods and Jobs for the tests of the kubelet, and what to wait for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from cluster.client import PATIENCE, Client

Object = dict[str, Any]
HOME = "/rlhf"


def a_job(
    name: str, *command: str, pods: int = 1, container: Object | None = None, **spec: Any
) -> Object:
    """An Indexed Job whose pods run a command in HOME."""
    own = {
        "name": "main",
        "image": "none",
        "workingDir": HOME,
        "command": list(command) or ["true"],
        "terminationMessagePath": f"{HOME}/termination/message.json",
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    template = {
        "metadata": {"labels": {"test/job": name}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "subdomain": name,
            "terminationGracePeriodSeconds": 20,
            "containers": [own | (container or {})],
            **spec,
        },
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "completionMode": "Indexed",
            "completions": pods,
            "parallelism": pods,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "template": template,
        },
    }


def a_service(name: str, port: int) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"test/job": name},
            "ports": [{"name": "rendezvous", "port": port}],
        },
    }


class Pods:
    """The pods of a Job, in the order of their index."""

    def __init__(self, client: Client, namespace: str, job: Object) -> None:
        """Of a Job as it was made."""
        self._client = client
        self._namespace = namespace
        self._job = job["metadata"]["name"]
        self._since = job["metadata"]["resourceVersion"]

    def list(self) -> list[Object]:
        found = self._client.list("v1/pods", self._namespace, labels=f"test/job={self._job}")
        return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))

    def wait_one(self, holds: Callable[[Object], bool], timeout: float = PATIENCE) -> Object:
        """The first pod, once something holds for it."""
        (first, *_) = self.wait(lambda pods: bool(pods) and holds(pods[0]), timeout)
        return first

    def until_over(self) -> Iterator[Object]:
        """The pod at each change from its beginning to its end: also what is true for a moment."""
        for _, pod in self._client.watch("v1/pods", self._namespace, version=self._since):
            if pod["metadata"]["labels"].get("test/job") == self._job:
                yield pod
                if is_over(pod):
                    return
        raise TimeoutError(f"no pod of {self._job} has ended")

    def wait(
        self, holds: Callable[[list[Object]], bool], timeout: float = PATIENCE
    ) -> list[Object]:
        """All pods, once something holds for them."""

        deadline = time.monotonic() + timeout
        while not holds(pods := self.list()):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"not as awaited after {timeout:g} s: {[p['status'] for p in pods]}"
                )
            time.sleep(0.05)
        return pods


def phase(pod: Object) -> str:
    return str(pod["status"].get("phase"))


def is_running(pod: Object) -> bool:
    return phase(pod) == "Running"


def is_over(pod: Object) -> bool:
    return phase(pod) in ("Succeeded", "Failed")


def terminated(pod: Object) -> Object:
    found: Object = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return found


def waiting(pod: Object) -> Object:
    states = pod["status"].get("containerStatuses", [])
    found: Object = states[0]["state"].get("waiting", {}) if states else {}
    return found


def condition(pod: Object, kind: str) -> Object:
    return next((c for c in pod["status"].get("conditions", []) if c["type"] == kind), {})
