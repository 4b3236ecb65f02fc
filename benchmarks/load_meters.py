"""Measures for operator_load.py: when each thing was seen, and what the operator spends."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from cluster.control_plane import ControlPlane
from load_cluster import JOBS, NAMESPACE, PODS, RLHFJOBS, PlainClient
from operator_process import OperatorProcess
from prometheus_client.parser import text_string_to_metric_families

Object = dict[str, Any]
Requests = Counter[tuple[str, str]]
"""How many by verb and resource."""

LABEL_JOB: Final = "rlhf.dev/job"
LABEL_STAGE: Final = "rlhf.dev/stage"
STAGES: Final = ("prepare", "sft", "reward", "ppo")
OURS: Final = ("rlhfjobs", "jobs", "configmaps", "services", "podgroups", "workloads", "events")
"""Resources that the operator writes, and that nobody else writes while nothing happens."""


class Sightings:
    """When each step of each RLHFJob was first seen, on watches of one and the same process."""

    def __init__(self, client: PlainClient) -> None:
        self.asked: dict[str, float] = {}
        self.created: dict[str, float] = {}
        self.made: dict[tuple[str, str], float] = {}
        self.ended: dict[tuple[str, str], float] = {}
        self.ready: dict[str, float] = {}
        self._client = client

    async def follow(self) -> None:
        """Until it is cancelled."""
        await asyncio.gather(
            self._watch(RLHFJOBS, self._saw_rlhfjob),
            self._watch(JOBS.format(namespace=NAMESPACE), self._saw_job),
            self._watch(PODS.format(namespace=NAMESPACE), self._saw_pod),
        )

    async def _watch(self, path: str, saw: Callable[[Object, float], None]) -> None:
        async for item in self._client.watch(path):
            saw(item, time.monotonic())

    def _saw_rlhfjob(self, item: Object, now: float) -> None:
        name = item["metadata"]["name"]
        self.created.setdefault(name, now)
        if has_condition(item, "Ready"):
            self.ready.setdefault(name, now)

    def _saw_job(self, item: Object, now: float) -> None:
        self.made.setdefault(step_of(item), now)

    def _saw_pod(self, item: Object, now: float) -> None:
        if item["status"].get("phase") == "Succeeded":
            self.ended.setdefault(step_of(item), now)

    async def create(self, made: Object) -> None:
        """Creates an RLHFJob."""
        self.asked[made["metadata"]["name"]] = time.monotonic()
        await self._client.post(RLHFJOBS, made)

    def have_seen_all_of(self, names: Iterable[str]) -> bool:
        """Whether each is Ready, and the end of its last pod has been seen, too."""
        return all(name in self.ready and (name, STAGES[-1]) in self.ended for name in names)

    def first_jobs(self, names: Iterable[str]) -> list[float]:
        """Seconds from each RLHFJob, as asked for, to its first Job."""
        return [self.made[name, STAGES[0]] - self.asked[name] for name in names]

    def reactions(self, names: Iterable[str]) -> list[float]:
        """Seconds from an RLHFJob, or from the end of a stage's pod, to what follows it."""
        found = []
        for name in names:
            found.append(self.made[name, STAGES[0]] - self.created[name])
            for stage, following in itertools.pairwise(STAGES):
                found.append(self.made[name, following] - self.ended[name, stage])
            found.append(self.ready[name] - self.ended[name, STAGES[-1]])
        return found


def step_of(item: Object) -> tuple[str, str]:
    """RLHFJob and stage of a Job or a pod."""
    labels = item["metadata"]["labels"]
    return labels[LABEL_JOB], labels[LABEL_STAGE]


def has_condition(item: Object, kind: str) -> bool:
    """Whether it is True."""
    found = (item.get("status") or {}).get("conditions") or []
    return any(c["type"] == kind and c["status"] == "True" for c in found)


async def until(what: Callable[[], bool], timeout: float) -> None:
    """Waits for it to come true."""
    deadline = time.monotonic() + timeout
    while not what():
        if time.monotonic() > deadline:
            raise SystemExit(f"Not all of it has happened after {timeout:g} s.")
        await asyncio.sleep(0.02)


class Cost(NamedTuple):
    """What the operator has spent so far, and what it made others spend."""

    requests: Requests
    cpu_seconds: Mapping[str, float]  # by program: the operator's, and those of the control plane
    memory_bytes: int  # the operator's, at its peak

    def since(self, before: Cost) -> Cost:
        """Requests and CPU time from then to now; the peak of memory is that of now."""
        requests = self.requests.copy()
        requests.subtract(before.requests)
        seconds = {name: now - before.cpu_seconds[name] for name, now in self.cpu_seconds.items()}
        return Cost(+requests, seconds, self.memory_bytes)


class Meter:
    """Reads the costs of an operator's process, from itself and from /proc."""

    def __init__(self, operator: OperatorProcess, control_plane: ControlPlane) -> None:
        self._operator = operator
        self._control_plane = control_plane

    async def cost(self) -> Cost:
        """As of now."""
        families = await self._metrics()
        requests: Requests = Counter()
        for labels, value in families.get("rlhf_operator_api_requests_total", []):
            requests[labels["verb"], labels["resource"]] += int(value)
        operator = self._operator.pid
        seconds = {"operator": _cpu_seconds(operator), **spent_by(self._control_plane)}
        return Cost(requests, seconds, _peak_memory(operator))

    async def passes(self) -> int:
        """Passes that have ended; 0 as long as it does not answer."""
        try:
            families = await self._metrics()
        except OSError:
            return 0
        found = families.get("rlhf_operator_reconcile_duration_seconds_count", [])
        return int(sum(value for _, value in found))

    async def _metrics(self) -> dict[str, list[tuple[Mapping[str, str], float]]]:
        url = f"http://127.0.0.1:{self._operator.health_port}/metrics"
        return samples(await asyncio.to_thread(_read, url))


def spent_by(control_plane: ControlPlane) -> dict[str, float]:
    """CPU seconds of each of its programs so far."""
    return {name: _cpu_seconds(of.pid) for name, of in control_plane.programs.items()}


def samples(text: str) -> dict[str, list[tuple[Mapping[str, str], float]]]:
    """Labels and values by the name of the sample."""
    found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def written(text: str) -> int:
    """Writes of what the operator writes that the API server has counted, whoever sent them."""
    writes = ("POST", "PUT", "PATCH", "APPLY", "DELETE")
    found = samples(text)["apiserver_request_total"]
    return int(sum(v for of, v in found if of["verb"] in writes and of["resource"] in OURS))


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def _cpu_seconds(pid: int | None) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_memory(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak) * 1024


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]
