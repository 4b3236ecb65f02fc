"""The Cluster interface on one machine: `apply` makes pod directories, `step` runs them."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from rlhf_api.job import RLHFJob
from rlhf_api.status import Condition, JobStatus

from rlhf_operator.events import Event
from rlhf_operator.local.addresses import Addresses
from rlhf_operator.local.job_controller import pod_of
from rlhf_operator.local.kubelet import command, environment, no_proxy
from rlhf_operator.local.machine import Machine
from rlhf_operator.local.mounts import Object, Sources, mount, volume_needs
from rlhf_operator.local.pods import LocalPod, PodRecord
from rlhf_operator.local.processes import TAG
from rlhf_operator.local.progress_server import LoopbackServer
from rlhf_operator.local.store import Store
from rlhf_operator.names import (
    ANNOTATION_HASH,
    ANNOTATION_SETTINGS,
    LABEL_ATTEMPT,
    LABEL_STAGE,
    JobKey,
)
from rlhf_operator.observed import Attempt, Observed
from rlhf_operator.render import Platform

WAITING: Final = {"GOMP_SPINCOUNT": "5000"}
"""How long threads of one operation spin for one another, in turns of libgomp's loop: some 10 µs.
Its own milliseconds hold a training back several times over where the machine does other work too.
"""


class LocalCluster:
    """Pods are processes, claims are directories, and the API server is a directory, too."""

    def __init__(
        self,
        job: RLHFJob,
        store: Store,
        machine: Machine,
        server: LoopbackServer,
        fingerprints: Mapping[str, str],
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        """`job` is fitted to the machine; `store` keeps it as it was written, and its status."""
        self.platform = Platform(progress_url=server.url, is_one_machine=True)
        self.job = job
        self._store = store
        self._machine = machine
        self._server = server
        self._fingerprints = fingerprints
        self._on_event = on_event
        self._gpus: dict[str, tuple[str, ...]] = {}  # by the name of the pod that has them
        self._pods: dict[str, LocalPod] = {}
        self._is_interrupted = False
        self._read_pods()

    def _read_pods(self) -> None:
        """What earlier runs have left. Nobody waits for the pods of another job."""
        for directory in sorted(self._store.pods.glob("*")):
            pod = LocalPod.read(directory)
            if pod and pod.record.uid == self.job.metadata.uid:
                self._pods[directory.name] = pod
            elif pod and pod.is_live:
                pod.kill()

    # The Cluster interface

    async def load(self, key: JobKey) -> dict[str, Any] | None:
        """The fitted job with the newest status."""
        return self.job.model_copy(update={"status": self._store.status}).to_dict()

    async def observe(self, job: RLHFJob, now: datetime) -> Observed:
        """Attempts by what their pods' directories say."""
        gangs: dict[tuple[str, int], list[LocalPod]] = {}
        for pod in self._pods.values():
            gangs.setdefault((pod.record.stage, pod.record.attempt), []).append(pod)
        return Observed(
            attempts=tuple(_attempt(pods) for pods in gangs.values()),
            progress=self._server.reports(),
            fingerprints=self._fingerprints,
            is_interrupted=self._is_interrupted,
            directory=str(self._store.directory),
        )

    async def confirm(self, key: JobKey) -> None:
        """There is no other view of it."""

    async def apply(self, job: RLHFJob, objects: Sequence[Object]) -> None:
        """Makes the directories of the pods of each Job among the objects."""
        by_kind = {item["kind"]: item for item in objects}
        workload = by_kind["Job"]
        sources = self._sources(workload, by_kind["ConfigMap"])
        addresses = Addresses.of(by_kind.get("Service"))
        for index in range(workload["spec"]["completions"]):
            pod = pod_of(workload, index)
            name = pod["metadata"]["name"]
            if name not in self._pods:
                self._pods[name] = self._make_pod(workload, index, pod, sources, addresses)

    async def delete(self, job: RLHFJob, stage: str, attempt: int) -> None:
        """Asks the pods of an attempt to go."""
        for pod in self._pods.values():
            if (pod.record.stage, pod.record.attempt) == (stage, attempt):
                pod.delete()

    async def write_status(self, manifest: Object, status: JobStatus) -> None:
        """DIR/status.yaml, whole or not at all."""
        self._store.write(status)

    async def write_conditions(self, manifest: Object, conditions: Sequence[Condition]) -> None:
        """The same: here a status that cannot be read is refused before anything runs."""
        status = self._store.status or JobStatus()
        self._store.write(status.model_copy(update={"conditions": [*conditions]}))

    async def emit(self, key: JobKey, happened: Sequence[Event]) -> None:
        """To whoever asked to be told."""
        for event in happened:
            if self._on_event:
                self._on_event(event)

    # What Kubernetes' own controllers, scheduler and kubelets do

    def step(self) -> None:
        """Ends broken gangs and deleted pods, collects what ended, starts what waits."""
        self.end_orphans()
        self._end_unwanted()
        for name, pod in list(self._pods.items()):
            if pod.phase in ("Succeeded", "Failed"):
                self._gpus.pop(name, None)
                pod.collect()
                if pod.is_deleting:
                    del self._pods[name]
        waiting = [pod for pod in self._pods.values() if _may_start(pod)]
        ranks = sum(p.record.ranks for p in [*waiting, *self._live()]) or 1
        for pod in waiting:
            self._start(pod, threads=max(1, self._machine.cpus // ranks))

    def is_live(self) -> bool:
        """Whether a process of any pod may still run."""
        return bool(self._live())

    def end_orphans(self) -> None:
        """Kills processes whose supervisor was killed: nobody else would end them."""
        for pod in self._pods.values():
            pod.end_orphans()

    def has_work(self) -> bool:
        """Whether a pod runs, or waits to."""
        return any(pod.is_live or _may_start(pod) for pod in self._pods.values())

    def running(self) -> int:
        """How many pods that this run started are running."""
        return sum(pod.is_supervised for pod in self._pods.values())

    def interrupt(self) -> None:
        """From now on passes count ends, and start nothing."""
        self._is_interrupted = True

    def disrupt(self) -> None:
        """Tells every pod that its owner goes."""
        for pod in self._pods.values():
            pod.disrupt()

    def kill(self) -> None:
        """Ends every pod at once."""
        for pod in self._live():
            pod.kill()

    def _live(self) -> list[LocalPod]:
        return [pod for pod in self._pods.values() if pod.is_live]

    def _end_unwanted(self) -> None:
        """backoffLimit 0, activeDeadlineSeconds, deletion: what the Job controller ends."""
        live = self._live()
        for pod in live:
            pod.check_deadline(time.time())
        broken = {_gang(p) for p in self._pods.values() if p.phase == "Failed" or p.was_late}
        for pod in live:
            if _gang(pod) in broken or pod.is_deleting:
                pod.end()

    def _start(self, pod: LocalPod, threads: int) -> None:
        """Starts a pod if the devices that it asks for are free."""
        taken = {gpu for gpus in self._gpus.values() for gpu in gpus}
        free = [gpu for gpu in self._machine.gpus if gpu not in taken]
        if len(free) < pod.record.devices:
            return
        mine = tuple(free[: pod.record.devices])
        self._gpus[pod.directory.name] = mine
        inherited = {**WAITING, **os.environ, **no_proxy(os.environ)}
        inherited["OMP_NUM_THREADS"] = str(threads)
        devices = {"CUDA_VISIBLE_DEVICES": ",".join(mine)}
        pod.start({**inherited, **pod.record.environment, **devices, TAG: pod.record.tag})

    def _sources(self, workload: Object, config: Object) -> Sources:
        """One folder a claim, and the server's own token."""
        needs = volume_needs(workload["spec"]["template"]["spec"])
        files = {name: text.encode() for name, text in config["data"].items()}
        return Sources(
            config_maps={config["metadata"]["name"]: files},
            claims={claim: self._store.volumes / claim for claim in needs.claims},
            tokens=dict.fromkeys(needs.audiences, self._server.token),
        )

    def _make_pod(
        self, workload: Object, index: int, pod: Object, sources: Sources, addresses: Addresses
    ) -> LocalPod:
        """Builds the directory from nothing; what a crash or another job left is removed."""
        directory = self._store.pods / pod["metadata"]["name"]
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        mount(directory, pod["spec"], sources)
        variables = environment(pod, directory, addresses)
        words = command(pod["spec"]["containers"][0], variables, addresses)
        made = LocalPod(directory, self._record(workload, index, variables, words))
        made.save()
        return made

    def _record(
        self, workload: Object, index: int, variables: dict[str, str], words: list[str]
    ) -> PodRecord:
        meta, spec = workload["metadata"], workload["spec"]
        stage = meta["labels"][LABEL_STAGE]
        resources = self.job.spec.resources
        config = self.job.spec.stages.present().get(stage)
        asked = resources.overridden_by(config.resources) if config else None
        return PodRecord(
            uid=self.job.metadata.uid,
            stage=stage,
            attempt=int(meta["labels"][LABEL_ATTEMPT]),
            hash=meta["annotations"][ANNOTATION_HASH],
            settings=meta["annotations"][ANNOTATION_SETTINGS],
            completion_index=index,
            size=spec["completions"],
            ranks=asked.ranks_per_node if asked else 1,
            devices=asked.gpus_per_node if asked else 0,
            grace=spec["template"]["spec"]["terminationGracePeriodSeconds"],
            deadline=spec.get("activeDeadlineSeconds"),
            tag=uuid.uuid4().hex,
            command=words,
            environment=variables,
        )


def _gang(pod: LocalPod) -> tuple[str, int]:
    return pod.record.stage, pod.record.attempt


def _may_start(pod: LocalPod) -> bool:
    return pod.phase == "Pending" and not pod.was_started and not pod.is_deleting


def _attempt(pods: list[LocalPod]) -> Attempt:
    """One gang, with the condition that the Job controller would set."""
    record = pods[0].record
    seen = tuple(
        pod.observed() for pod in sorted(pods, key=lambda pod: pod.record.completion_index)
    )
    attempt = Attempt(
        stage=record.stage,
        number=record.attempt,
        hash=record.hash,
        settings=record.settings,
        size=record.size,
        pods=seen,
        is_terminating=any(pod.is_deleting for pod in pods),
        is_whole=len(pods) == record.size,
    )
    if not attempt.is_live and any(pod.phase == "Failed" for pod in seen):
        late = any(pod.was_late for pod in pods)
        return attempt._replace(condition="Failed", reason="DeadlineExceeded" if late else None)
    return attempt._replace(condition="Complete" if attempt.has_ended else None)
