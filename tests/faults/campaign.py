"""Runs pipelines, several at a time, each in a namespace and with operators of its own."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import warm
from cluster.control_plane import ControlPlane
from cluster.kubelet import Script, succeed
from cluster.kubelet.script import index_of
from cluster_jobs import JOBS, manifest

from faults.audit import Audit
from faults.invariants import Endless, Run, is_ready, outcome
from faults.ledger import Ledger, Object
from faults.operators import KUBECONFIG, start
from faults.proxy import Proxy
from faults.weather import Disturbance, Weather

JOB: Final = "tiny"
STAGES: Final = "sft reward ppo"
ATTEMPTS: Final = {"prepare": 1, "sft": 1, "reward": 2, "ppo": 1}
"""The cluster takes a pod of reward once."""

AT_A_TIME: Final = 8
DEADLINE: Final = 120.0
"""Seconds that one life may take to the end of the pipeline, or to the fault."""
QUIET: Final = 1.5
"""Seconds after Ready in which an operator that is up must not write."""

UNDISTURBED: Final = Disturbance()
CHILDREN: Final = (
    "v1/pods",
    "v1/configmaps",
    "v1/services",
    "v1/persistentvolumeclaims",
    "batch/v1/jobs",
    "scheduling.k8s.io/v1alpha2/podgroups",
)
_numbers = itertools.count(1)


def play(pod: Object) -> Script:
    """All is well, but for one pod that the cluster evicts while the others of its gang train."""
    labels = pod["metadata"]["labels"]
    if (labels["rlhf.dev/stage"], labels["rlhf.dev/attempt"]) != ("reward", "1"):
        return succeed(pod)
    if index_of(pod) == 0:
        return Script(run_s=0.2, end="Evicted")
    return Script(run_s=None, term_s=0.2)


class Campaign:
    """Plans on one control plane, whose nodes have a kubelet that plays `play`."""

    def __init__(self, control_plane: ControlPlane, ledger: Ledger, directory: Path) -> None:
        self._client = control_plane.client
        self._kubeconfig = control_plane.kubeconfig
        self._ledger = ledger
        self._directory = directory
        self._namespaces: list[str] = []

    async def run_all(self, faults: Mapping[str, Disturbance]) -> dict[str, Run | Endless]:
        """A pipeline for each, several at a time, by name."""
        few = asyncio.Semaphore(AT_A_TIME)

        async def run(fault: Disturbance) -> Run | Endless:
            async with few:
                try:
                    return await self.run(fault)
                except Endless as error:
                    return error

        runs = await asyncio.gather(*map(run, faults.values()))
        return dict(zip(faults, runs, strict=True))

    async def run(self, fault: Disturbance = UNDISTURBED) -> Run:
        """One pipeline, from its creation to its end. Raises Endless."""
        namespace = await asyncio.to_thread(self._make_namespace)
        audit, history = Audit(fault.strike), self._ledger.history(namespace)
        weather = Weather(fault.turn)
        made = manifest(namespace, JOB, nodes=2, stages=STAGES)
        await asyncio.to_thread(self._client.create, made)
        is_over = False
        while not is_over:
            try:
                async with asyncio.timeout(DEADLINE):
                    is_over = await self._live(namespace, audit, weather, fault)
            except (TimeoutError, ChildProcessError) as error:
                raise Endless(f"{error!r}. {self._told(namespace, audit)}") from error
        children = await asyncio.to_thread(self._children, namespace)
        has_struck = bool(audit.struck) or weather.turned.is_set()
        return Run(namespace, history, audit, outcome(history, children), has_struck, [])

    async def delete_all(self, runs: Iterable[Run]) -> None:
        """Deletes the RLHFJobs, while no operator is there, and notes what of their own is left."""
        left = {run.namespace: run for run in runs}
        for namespace in left:
            await asyncio.to_thread(self._client.delete, JOBS, JOB, namespace)
        deadline = time.monotonic() + DEADLINE
        while left and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
            for run in list(left.values()):
                found = await asyncio.to_thread(self._owned, run)
                run.left_after_delete[:] = found
                if not found:
                    del left[run.namespace]

    def close(self) -> None:
        """Deletes the namespaces."""
        for namespace in self._namespaces:
            self._client.delete("v1/namespaces", namespace)

    async def _live(
        self, namespace: str, audit: Audit, weather: Weather, fault: Disturbance
    ) -> bool:
        """One life of the operator; whether it was there at the end, and saw that all is done.

        Raises ChildProcessError where it has ended by itself.
        """
        audit.life += 1
        directory = self._directory / f"{namespace}-{audit.life}"
        directory.mkdir()
        async with Proxy(self._kubeconfig, audit, weather, lambda: operator.kill()) as proxy:
            proxy.write_kubeconfig(directory / KUBECONFIG)
            flags = ("--namespace", namespace, "--no-leader-election", "--health-port", "0")
            log = self._log(namespace)
            ahead = fault.clock(audit.life)
            operator = start(*flags, directory=directory, log=log, ahead=ahead)
            ends = [self._is_done(namespace, proxy), proxy.killed.wait(), _has_ended(operator)]
            tasks = [asyncio.ensure_future(end) for end in ends]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if tasks[2].done() and not proxy.killed.is_set():
                    raise ChildProcessError("the operator has ended by itself")
                return not proxy.killed.is_set()
            finally:
                for task in tasks:
                    task.cancel()
                operator.kill()

    async def _is_done(self, namespace: str, proxy: Proxy) -> None:
        await proxy.watched.wait()
        await self._ledger.wait(namespace, lambda seen: is_ready(seen.there("RLHFJob").get(JOB)))
        await asyncio.sleep(QUIET)

    def _log(self, namespace: str) -> Path:
        return self._directory / f"{namespace}.log"

    def _owned(self, run: Run) -> list[str]:
        """What there is of the RLHFJob, and of its own; a pod goes with its Job."""
        (job,) = [e.item for e in run.history.of("RLHFJob") if e.type == "ADDED"]
        uid = job["metadata"]["uid"]
        jobs = [{**job, "kind": "rlhfjobs"}] if run.history.there("RLHFJob") else []
        children = self._children(run.namespace)
        return [
            f"{item['kind']}/{item['metadata']['name']}"
            for item in [*jobs, *children]
            if item["kind"] in ("rlhfjobs", "pods")
            or any(o["uid"] == uid for o in item["metadata"].get("ownerReferences") or [])
        ]

    def _make_namespace(self) -> str:
        name = f"faults-{next(_numbers)}"
        self._client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        self._namespaces.append(name)
        self._client.wait_for("v1/serviceaccounts", "default", lambda found: bool(found), name)
        return name

    def _children(self, namespace: str) -> list[Object]:
        found: list[Object] = []
        for resource in CHILDREN:
            kind = resource.rpartition("/")[2]
            listed = self._client.list(resource, namespace, labels="rlhf.dev/job")
            found += [{**item, "kind": kind} for item in listed]
        return found

    def _told(self, namespace: str, audit: Audit) -> str:
        history = self._ledger.history(namespace)
        log = self._log(namespace).read_text(errors="replace")
        calls = "\n".join(f"  {n}. {call}" for n, call in enumerate(audit.calls, 1))
        status = [job.get("status") for job in history.there("RLHFJob").values()]
        return f"Calls:\n{calls}\nStatus: {status}\nLog:\n{log[-3000:]}"


async def _has_ended(operator: warm.Forked) -> None:
    """Returns when it is gone, killed or not."""
    while operator.is_running:
        await asyncio.sleep(0.25)
