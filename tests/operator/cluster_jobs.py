"""Jobs for tests on the control plane, and what their status says."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from typing import Any

from builders import MANIFEST
from cluster.client import PATIENCE, Client

JOBS = "rlhf.dev/v1alpha1/rlhfjobs"
Object = dict[str, Any]


def manifest(namespace: str, name: str = "tiny", *, nodes: int = 2, stages: str = "") -> Object:
    """The builders' job with remote sources; `stages` names those that are kept, all by default."""
    made = copy.deepcopy(MANIFEST)
    made["metadata"] = {"name": name, "namespace": namespace}
    spec = made["spec"]
    spec["model"] = {"source": "hf://org/model"}
    kept = stages.split() or list(spec["stages"])
    spec["stages"] = {name: spec["stages"][name] for name in kept}
    for stage in spec["stages"].values():
        stage["data"]["source"] = "hf://org/data"
    spec["resources"] = {"nodes": nodes, "gpusPerNode": 4}
    return made


def condition(job: Object | None, kind: str) -> tuple[str, str]:
    """Status and reason."""
    found = ((job or {}).get("status") or {}).get("conditions") or []
    return next(((c["status"], c["reason"]) for c in found if c["type"] == kind), ("", ""))


def stage(job: Object | None, name: str) -> Object:
    """Status of a stage."""
    status = (job or {}).get("status") or {}
    found: Object = status.get("stages", {}).get(name) or {}
    return found


class Jobs:
    """The RLHFJobs of a namespace."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    def get(self, name: str = "tiny") -> Object:
        return self.client.get(JOBS, name, self.namespace)

    def create(self, made: Object) -> Object:
        return self.client.create(made, self.namespace)

    def patch(self, body: Object, name: str = "tiny") -> Object:
        return self.client.patch(JOBS, name, body, self.namespace)

    def wait(
        self, what: Callable[[Object | None], bool], name: str = "tiny", timeout: float = PATIENCE
    ) -> Object:
        """Raises TimeoutError with the status."""
        deadline = time.monotonic() + timeout
        while not what(seen := self.client.find(JOBS, name, self.namespace)):
            if time.monotonic() > deadline:
                status = json.dumps((seen or {}).get("status"), indent=1)
                raise TimeoutError(f"not as awaited after {timeout:g} s: {status}")
            time.sleep(0.1)
        return seen or {}

    def wait_ready(self, name: str = "tiny", timeout: float = PATIENCE) -> Object:
        return self.wait(lambda job: condition(job, "Ready")[0] == "True", name, timeout)

    def wait_running(self, name: str, of: str = "tiny", timeout: float = PATIENCE) -> Object:
        def runs(job: Object | None) -> bool:
            return stage(job, name).get("phase") == "Running"

        return self.wait(runs, of, timeout)

    def attempts(self, name: str = "tiny") -> dict[str, int]:
        return {of: s["attempt"] for of, s in self.get(name)["status"]["stages"].items()}

    def children(self, plural: str) -> list[Object]:
        return self.client.list(plural, self.namespace, labels="rlhf.dev/job")

    def pods(self, name: str) -> list[Object]:
        labels = f"rlhf.dev/job,rlhf.dev/stage={name}"
        return self.client.list("v1/pods", self.namespace, labels=labels)

    def events(self) -> list[tuple[str, str]]:
        found = self.client.list("events.k8s.io/v1/events", self.namespace)
        ours = [e for e in found if e.get("reportingController") == "rlhf.dev/operator"]
        ours.sort(key=lambda e: e["eventTime"])
        return [(e["reason"], e["note"]) for e in ours]


def wait_until(what: Callable[[], bool], timeout: float = PATIENCE) -> None:
    """Waits for it to come true."""
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)
