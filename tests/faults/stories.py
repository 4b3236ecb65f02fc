"""Plays cells of the matrix, several at a time: each in a namespace, with nodes and an operator of
its own, and pods that run until they are let go."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import warm
from cluster.client import Client
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Script, Scripted, succeed
from cluster.kubelet.runtime import Host
from cluster.kubelet.script import ScriptedContainer, index_of
from cluster.nodes import FakeNode, FakeNodes
from cluster_jobs import JOBS, Jobs, condition, manifest
from rlhf_operator.names import short

from faults.invariants import is_live, is_ready
from faults.ledger import Entry, History, Ledger, Object
from faults.line import Line
from faults.matrix import AWAY, HAPPENINGS, PHASES, SEEN_BY_NOBODY, STORMS, Cell, counts
from faults.operators import KUBECONFIG, start

JOB: Final = "tiny"
AT_A_TIME: Final = 6
PATIENCE: Final = 180.0
"""Seconds that a step may take."""
QUIET: Final = 2.0
"""Seconds after the end in which nothing may be written."""
PAUSE: Final = {"backoff": 8}
"""Seconds between two attempts; 1 where it does not matter."""
AWAY_FOR: Final = 13.0
"""Seconds without an API server: more than a lease holds."""
FROZEN_FOR: Final = 45.0
"""Seconds without etcd: more than a request of the operator's waits."""
DOWN: Final = 1.5
"""Seconds for which no operator is there after it has happened."""
_numbers = itertools.count(1)


class Held(Scripted):
    """Pods of some stages run until somebody ends them; those of other stages end well at once."""

    def __init__(self) -> None:
        super().__init__(self._chosen)
        self.stages: dict[str, tuple[str, ...]] = {}  # by the UID of an RLHFJob
        self.unpulled: set[str] = set()  # UIDs of RLHFJobs of whose held stages no image is there
        self._running: dict[str, ScriptedContainer] = {}

    async def create(self, pod: Object, host: Host) -> ScriptedContainer:
        container = await super().create(pod, host)
        self._running[pod["metadata"]["uid"]] = container
        self._loop = asyncio.get_running_loop()
        return container

    def end(self, pod: Object, code: int = 0) -> None:
        """Its trainer ends by itself."""
        container = self._running.get(pod["metadata"]["uid"])
        if container is not None:
            message = succeed(pod).message if code == 0 else ""
            self._loop.call_soon_threadsafe(container.finish, code, message)

    def _chosen(self, pod: Object) -> Script:
        meta = pod["metadata"]
        uid = (meta.get("annotations") or {}).get("rlhf.dev/job-uid", "")
        labels = meta.get("labels") or {}
        if not uid:
            return Script()
        if labels["rlhf.dev/stage"] not in self.stages.get(uid, ()) or labels[ATTEMPT] != "1":
            return succeed(pod)
        return Script(run_s=None, term_s=0.3, waiting="ErrImagePull" * (uid in self.unpulled))


ATTEMPT: Final = "rlhf.dev/attempt"


class Storm:
    """Strikes once every story has reached its phase, and is over for all of them at once."""

    def __init__(self, happening: str, plane: ControlPlane, stories: int) -> None:
        self._happening, self._plane = happening, plane
        self._begin = threading.Barrier(stories, self._strike)
        self._end = threading.Barrier(stories, self._mend)

    def begin(self) -> None:
        self._begin.wait(PATIENCE)

    def end(self) -> None:
        self._end.wait(PATIENCE)

    def call_off(self) -> None:
        """A story has ended before its time: the others shall not wait for it."""
        self._begin.abort()
        self._end.abort()

    def _strike(self) -> None:
        if self._happening == "etcd stopped":
            self._plane.freeze("etcd")
        else:
            self._plane.stop("kube-apiserver", grace=0)

    def _mend(self) -> None:
        if self._happening == "etcd stopped":
            time.sleep(FROZEN_FOR)
            self._plane.thaw("etcd")
        else:
            time.sleep(AWAY_FOR)
            self._plane.start("kube-apiserver")


class Story:
    """One cell, from the job's creation to what is left of it."""

    def __init__(
        self,
        cell: Cell,
        plane: ControlPlane,
        kubelet: Kubelet,
        held: Held,
        nodes: FakeNodes,
        storm: Storm | None = None,
    ) -> None:
        self.cell = cell
        self.storm = storm
        self.phase = PHASES[cell.phase]
        self.stage = self.phase.stage
        self.namespace = f"cell-{next(_numbers)}"
        self.client: Client = plane.client
        self.jobs = Jobs(plane.client, self.namespace)
        self._plane, self._kubelet, self._held, self._nodes = plane, kubelet, held, nodes
        self._own: list[FakeNode] = []
        self._open = contextlib.ExitStack()

    # What there is

    def job(self) -> Object | None:
        return self.history.there("RLHFJob").get(JOB)

    def of_stage(self, stage: str = "") -> Object:
        status = (self.job() or {}).get("status") or {}
        name = stage or self.stage
        found = status.get("prepare") if name == "prepare" else status.get("stages", {}).get(name)
        return found or {}

    def pods(self, stage: str = "") -> list[Object]:
        found = self.history.there("Pod").values()
        ours = [pod for pod in found if "rlhf.dev/stage" in (pod["metadata"].get("labels") or {})]
        return sorted(
            (p for p in ours if p["metadata"]["labels"]["rlhf.dev/stage"] == (stage or self.stage)),
            key=index_of,
        )

    def wait(self, what: Callable[[], object], why: str, patience: float = PATIENCE) -> None:
        deadline = time.monotonic() + patience
        while not what():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{why}: not after {patience:g} s; {self.told()}")
            time.sleep(0.1)

    def told(self) -> str:
        status = (self.job() or {}).get("status") or {}
        stages = {"prepare": status.get("prepare") or {}, **status.get("stages", {})}
        names = ("attempt", "phase", "reason", "message", "ended", "faults", "disruptions")
        said = {n: {k: s[k] for k in names if k in s} for n, s in stages.items()}
        pods = [
            (p["metadata"]["name"], p["status"].get("phase"), "deletionTimestamp" in p["metadata"])
            for p in self.history.there("Pod").values()
        ]
        return f"{said}, pods {pods}, jobs {list(self.history.there('Job'))}"

    # How it goes

    def play(self, ledger: Ledger, folder: Path) -> Iterator[str]:
        """How the rules were broken."""
        self.history: History = ledger.history(self.namespace)
        self._begin(folder)
        try:
            self._reach()
            if self.cell.operator == "down":
                self.operator.kill()
                if self.cell.phase == SEEN_BY_NOBODY:
                    self._let_pods_go()
                    self.wait(lambda: "Complete" in self._job_ends(), "the Job is complete")
            self._strike()
            if self.cell.operator == "down":
                time.sleep(DOWN)
                self._start()
            if self.cell.happening in AWAY:
                time.sleep(AWAY_FOR)
                self._line.mend()
            yield from self._finish()
        finally:
            self.operator.kill()
            self._open.close()
            for node in self._own:
                self._nodes.remove(node)

    def _begin(self, folder: Path) -> None:
        name = self.namespace
        self.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        self.client.wait_for("v1/serviceaccounts", "default", lambda found: bool(found), name)
        taint = {"key": "cell", "value": name, "effect": "NoSchedule"}
        room = 0 if self.cell.phase == "waiting for devices" else 8
        for number in range(2 if self.storm else 3):  # each takes the heartbeats of a machine
            made = {"nvidia.com/gpu": room}
            of = f"{name}-{number}"
            node = self._nodes.add(made, name=of, labels={"cell": name}, taints=[taint])
            self._own.append(node)
        directory = folder / name
        directory.mkdir()
        flags = ["--namespace", name, "--lease-namespace", name, "--health-port", "0"]
        if self.cell.happening in AWAY:
            self._line = self._open.enter_context(Line(self._plane.kubeconfig))
            self._line.write_kubeconfig(directory / KUBECONFIG)
        else:
            (directory / KUBECONFIG).symlink_to(self._plane.kubeconfig)
        if self.cell.happening not in (*AWAY, *STORMS):
            flags.append("--no-leader-election")
        self.log = folder / f"{name}.log"
        self._order = partial(start, *flags, directory=directory, log=self.log)
        self._start()
        self._make()

    def _start(self) -> None:
        self.operator: warm.Forked = self._order()

    def _make(self) -> None:
        made = manifest(self.namespace, JOB, nodes=2, stages="sft reward dpo")
        spec = made["spec"]
        own = {"key": "cell", "operator": "Equal", "value": self.namespace, "effect": "NoSchedule"}
        spec["resources"] |= {"nodeSelector": {"cell": self.namespace}, "tolerations": [own]}
        spec["checkpoints"] = {"claim": {"retain": self.cell.operator == "down"}}
        pause = PAUSE.get(self.cell.phase, 1)
        for stage in spec["stages"].values():
            stage["retry"] = {"maxFaults": 1, "backoffSeconds": pause}
        if self.cell.phase == "between stages":
            spec["stages"]["sft"]["gate"] = {"approval": True}
        made = self.jobs.create(made)
        self.uid = made["metadata"]["uid"]
        self._hold(self.uid)

    def _hold(self, uid: str) -> None:
        self._held.stages.setdefault(uid, self.phase.held)
        if self.cell.phase == "image not pulled":
            self._held.unpulled.add(uid)

    def _reach(self) -> None:
        match self.cell.phase:
            case "waiting for devices":
                self._until_reason("Unschedulable")
            case "image not pulled":
                self._until_reason("ImagePullFailed")
            case "between stages":
                self.wait(lambda: condition(self.job(), "ApprovalNeeded")[0] == "True", "the gate")
            case "finished":
                self.wait(lambda: is_ready(self.job()), "Ready")
            case _:
                for stage in self.phase.held:
                    self.wait(lambda of=stage: self._runs(of), f"{stage} runs")
        if self.cell.phase == "backoff":
            self._held.end(self.pods()[0], 75)
            self._until_reason("BackingOff")
        if self.cell.phase == "suspended":
            self.jobs.patch({"spec": {"suspend": True}})
            self.wait(lambda: self._is_suspended() and not self.pods(), "pods are gone")

    def _runs(self, stage: str) -> bool:
        return self.of_stage(stage).get("phase") == "Running" and bool(self.pods(stage))

    def _until_reason(self, reason: str) -> None:
        self.wait(lambda: self.of_stage().get("reason") == reason, reason)

    def _is_suspended(self) -> bool:
        return condition(self.job(), "Suspended")[0] == "True"

    def _job_ends(self) -> set[str]:
        name = f"{JOB}-{self.stage}-1"
        found = (self.history.there("Job").get(name) or {}).get("status", {}).get("conditions", [])
        return {item["type"] for item in found if item["status"] == "True"}

    # What happens

    def _strike(self) -> None:
        self.struck = self.pods()
        if delete := DELETIONS.get(self.cell.happening):
            resource, propagation = delete
            self._delete_child(resource, propagation)
        elif strike := FAULTS.get(self.cell.happening):
            strike(self)
        else:
            for spec in self._edits()[self.cell.happening]:
                self._edit(spec)

    def evict(self) -> None:
        self._kubelet.evict(self.struck[0])
        self._until_over(self.struck[:1])

    def starve(self) -> None:
        self._kubelet.oom(self.struck[0])
        self._until_over(self.struck[:1])

    def fail(self, code: int) -> None:
        self._held.end(self.struck[0], code)
        self._until_over(self.struck[:1])

    def clear_away(self) -> None:
        """Its peers go on; an operator that is up has seen its result by then."""
        pod = self.struck[0]
        self._held.end(pod)
        self._until_over([pod])
        self.delete_pods([pod])
        name = pod["metadata"]["name"]
        self.wait(lambda: name not in self.history.there("Pod"), f"{name} is gone")

    def drain(self) -> None:
        FakeNode(self.client, self.struck[0]["spec"]["nodeName"]).drain()
        self._until_over(self.struck[:1])

    def lose_api(self, lose: Callable[[Line], None]) -> None:
        """Pods end meanwhile; where no operator is up, the next one starts without it."""
        lose(self._line)
        self._let_pods_go()

    def weather(self) -> None:
        """Pods end meanwhile; or all nodes are silent for too long, and their pods go on."""
        assert self.storm
        self.storm.begin()
        if self.cell.happening == "API server killed":
            self._let_pods_go()
        self.storm.end()

    def _edits(self) -> dict[str, list[Object]]:
        of = "sft" if self.stage == "prepare" else self.stage
        once, again = ({"stages": {of: {"epochs": epochs}}} for epochs in (3, 1))
        return {
            "nothing": [],
            "suspended": [{"suspend": True}],
            "epochs edited": [once],
            "micro-batch edited": [{"stages": {of: {"microBatchSize": 2}}}],
            "edited and put back": [once, again],
            "dpo removed": [{"stages": {"dpo": None}}],
        }

    def delete(self) -> None:
        self.client.delete(JOBS, JOB, self.namespace)

    def make_again(self) -> None:
        self.delete()
        self.wait(lambda: self.job() is None, "the RLHFJob is gone")
        phase, self.phase = self.phase, self.phase._replace(held=())
        self._make()
        self._held.unpulled.discard(self.uid)
        self.phase = phase

    def delete_pods(self, pods: list[Object], grace: int | None = None) -> None:
        for pod in pods:
            self.client.delete("v1/pods", pod["metadata"]["name"], self.namespace, grace=grace)
        self._until_over(pods)

    def _until_over(self, pods: list[Object]) -> None:
        """They have ended, or are told to."""
        for pod in pods:
            uid = pod["metadata"]["uid"]
            self.wait(lambda of=uid: not self._goes_on(of), f"{pod['metadata']['name']} ends")

    def _goes_on(self, uid: str) -> bool:
        found = [p for p in self.history.there("Pod").values() if p["metadata"]["uid"] == uid]
        return any(is_live(p) and "deletionTimestamp" not in p["metadata"] for p in found)

    def preempt(self) -> None:
        node = self.struck[0]["spec"]["nodeName"]
        meta = {"name": "important", "namespace": self.namespace, "labels": {"app": "any"}}
        wanted = {"nvidia.com/gpu": "8"}
        container = {"name": "any", "image": "any", "resources": {"limits": wanted}}
        spec = {
            "priorityClassName": "system-node-critical",
            "nodeSelector": {"kubernetes.io/hostname": node},
            "tolerations": [{"operator": "Exists"}],
            "restartPolicy": "Never",
            "containers": [container],
        }
        self.client.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
        on_node = [pod for pod in self.struck if pod["spec"]["nodeName"] == node]
        self.wait(
            lambda: not all(self._goes_on(pod["metadata"]["uid"]) for pod in on_node), "preempted"
        )

    def lose(self) -> None:
        pod = self.struck[0]
        node = next(n for n in self._own if n.name == pod["spec"]["nodeName"])
        self._kubelet.lose_node(node.name)
        node.lose()
        if self.cell.operator == "up":
            self._until_reason("NodeLost")
        else:
            time.sleep(12)
        node.take_out_of_service()
        self._until_over([pod])

    def _delete_child(self, resource: str, propagation: str) -> None:
        name = f"{JOB}-{self.stage}-1"
        there = self.client.get(resource, name, self.namespace)["metadata"]["uid"]
        self.client.delete(resource, name, self.namespace, propagation=propagation)

        def is_over() -> bool:
            meta = (self.client.find(resource, name, self.namespace) or {}).get("metadata", {})
            return meta.get("uid") != there or "deletionTimestamp" in meta

        self.wait(is_over, f"{resource} {name} is deleted")

    def _edit(self, spec: Object) -> None:
        made = self.jobs.patch({"spec": spec})["metadata"]["generation"]
        if self.cell.operator == "up":
            self.wait(lambda: self._is_seen(made), "the edit is seen")

    def _is_seen(self, made: int = 0) -> bool:
        """Whether an operator has looked at the spec as it is, at this generation at least."""
        job = self.job() or {}
        newest = max(made, job.get("metadata", {}).get("generation", 0))
        return bool((job.get("status") or {}).get("observedGeneration") == newest)

    # How it ends

    def _finish(self) -> Iterator[str]:
        end = HAPPENINGS[self.cell.happening].end
        if HAPPENINGS[self.cell.happening].effect == "disruption" and self.phase.is_live:
            self._until_over(self.struck)
        self.wait(lambda: self.job() is None or self._is_seen(), "the edit is seen")
        if self.cell.phase == "waiting for devices":
            for node in self._own:
                node.resize({"nvidia.com/gpu": 8})
        deadline = time.monotonic() + PATIENCE
        while not self._is_over(end):
            if time.monotonic() > deadline:
                yield f"{end} never came: {self.told()}"
                return
            self._let_go()
            time.sleep(0.2)
        if end != "gone":
            version = (self.job() or {})["metadata"]["resourceVersion"]
            time.sleep(QUIET)
            if (self.job() or {})["metadata"]["resourceVersion"] != version:
                yield "the RLHFJob is written after the end"
            yield from self._miscounted()
            yield from self._wrong_events()
            if not self.operator.is_running:
                yield "the operator has ended by itself"
            self.operator.kill()
            self.client.delete(JOBS, JOB, self.namespace)
        yield from self._left_over()
        yield from two_live_attempts(self.history)
        yield from wrong_numbers(self.history)
        yield from wrong_conditions(self.history)

    def _is_over(self, end: str) -> bool:
        job = self.job()
        if end == "gone":
            return job is None
        if self.cell.happening == "deleted and made again" and job:
            return job["metadata"]["uid"] == self.uid and is_ready(job)
        return self._is_seen() and condition(job, end)[0] == "True"

    def _let_go(self) -> None:
        """All that was held goes on, and a person does what he is asked for."""
        self._held.unpulled.discard(self.uid)
        self._held.stages.pop(self.uid, None)
        self._let_pods_go()
        job = self.job()
        if job is None or HAPPENINGS[self.cell.happening].end == "gone":
            return
        is_idle = not any(is_live(pod) for pod in self.history.there("Pod").values())
        if job["spec"].get("suspend") and self._is_suspended() and is_idle:
            self.jobs.patch({"spec": {"suspend": False}})
        if condition(job, "ApprovalNeeded")[0] == "True":
            wanted = short(self.of_stage("sft")["hash"])
            self.jobs.patch({"metadata": {"annotations": {"rlhf.dev/approve-sft": wanted}}})

    def _let_pods_go(self) -> None:
        for pod in self.history.there("Pod").values():
            runs = pod["status"].get("phase") == "Running" and ATTEMPT in pod["metadata"]["labels"]
            if runs and "deletionTimestamp" not in pod["metadata"]:
                self._held.end(pod)

    # What is wrong then

    def _miscounted(self) -> Iterator[str]:
        status, wanted = self.of_stage(), counts(self.cell)
        for name, allowed in wanted._asdict().items():
            key = "attempt" if name == "attempts" else name
            if status.get(key, 0) not in allowed:
                yield f"{name} of {self.stage}: {status.get(key, 0)}, not {allowed}"

    def _wrong_events(self) -> Iterator[str]:
        listed = self.client.list("events.k8s.io/v1/events", self.namespace)
        ours = [
            e
            for e in listed
            if e.get("reportingController") == "rlhf.dev/operator"
            and e["regarding"]["uid"] == self.uid
        ]
        once = ("Attempt", "StageStarted", "StageSucceeded", "GangAdmitted")
        heads = Counter(
            f"{e['reason']} {e['note'].partition(' ended')[0]}"
            for e in ours
            if e["reason"].startswith(once)
        )
        yield from (f"told {times} times: {said}" for said, times in heads.items() if times > 1)

    def _left_over(self) -> Iterator[str]:
        deadline = time.monotonic() + PATIENCE
        while left := list(self._owned()):
            if time.monotonic() > deadline:
                yield f"left after the delete: {left}"
                return
            time.sleep(1)
        claim = self.client.find("v1/persistentvolumeclaims", f"{JOB}-checkpoints", self.namespace)
        is_kept = claim is not None and "deletionTimestamp" not in claim["metadata"]
        if self._had_claim and is_kept != (self.cell.operator == "down"):
            yield f"the claim is {'kept' if is_kept else 'gone'}"

    @property
    def _had_claim(self) -> bool:
        return any(entry.type == "ADDED" for entry in self.history.of("Job"))

    def _owned(self) -> Iterator[str]:
        for kind in ("Pod", "Job"):
            for name, item in self.history.there(kind).items():
                if "rlhf.dev/job" in (item["metadata"].get("labels") or {}):
                    yield f"{kind} {name}"
        for resource in OTHERS:
            for item in self.client.list(resource, self.namespace, labels="rlhf.dev/job"):
                if item["metadata"].get("ownerReferences"):
                    yield f"{resource} {item['metadata']['name']}"


FAULTS: Final[dict[str, Callable[[Story], None]]] = {
    "pod evicted": Story.evict,
    "pod killed for its memory": Story.starve,
    "pod fails": lambda story: story.fail(75),
    "pod finds bad configuration": lambda story: story.fail(64),
    "pod deleted": lambda story: story.delete_pods(story.struck[:1]),
    "pod deleted at once": lambda story: story.delete_pods(story.struck[:1], grace=0),
    "every pod deleted": lambda story: story.delete_pods(story.struck),
    "pod that has succeeded is cleared away": Story.clear_away,
    "node drained": Story.drain,
    "pod preempted": Story.preempt,
    "node lost": Story.lose,
    "API server away": lambda story: story.lose_api(Line.cut),
    "API server silent": lambda story: story.lose_api(Line.die),
    **dict.fromkeys(STORMS, Story.weather),
    "deleted": Story.delete,
    "deleted and made again": Story.make_again,
}
DELETIONS: Final = {
    "Job deleted": ("batch/v1/jobs", "Background"),
    "Job deleted in the foreground": ("batch/v1/jobs", "Foreground"),
    "Job deleted without its pods": ("batch/v1/jobs", "Orphan"),
    "ConfigMap deleted": ("v1/configmaps", "Background"),
    "Service deleted": ("v1/services", "Background"),
    "PodGroup deleted": ("scheduling.k8s.io/v1alpha2/podgroups", "Background"),
}
OTHERS: Final = (
    "v1/configmaps",
    "v1/services",
    "v1/persistentvolumeclaims",
    "scheduling.k8s.io/v1alpha2/podgroups",
)


def of_ours(history: History, kind: str) -> list[Entry]:
    """Not what preempts them."""
    return [
        e for e in history.of(kind) if "rlhf.dev/stage" in (e.item["metadata"].get("labels") or {})
    ]


def two_live_attempts(history: History) -> Iterator[str]:
    """I1: of one stage, by the Job that made a pod: a job made again counts anew."""
    live: dict[str, dict[str, str]] = {}
    made_by: dict[str, str] = {}
    for entry in of_ours(history, "Pod"):
        meta = entry.item["metadata"]
        stage, uid = meta["labels"]["rlhf.dev/stage"], meta["uid"]
        owners = meta.get("ownerReferences") or []
        made_by.setdefault(uid, owners[0]["uid"] if owners else "")
        of = live.setdefault(stage, {})
        of.pop(uid, None)
        if entry.type != "DELETED" and is_live(entry.item):
            of[uid] = made_by[uid]
        if len(set(of.values())) > 1:
            yield f"pods of two attempts of {stage} lived at the same time"


def wrong_numbers(history: History) -> Iterator[str]:
    """I5: attempts rise by one, in each RLHFJob that ever was."""
    seen: dict[tuple[str, str], int] = {}
    for entry in history.of("RLHFJob"):
        uid, status = entry.item["metadata"]["uid"], entry.item.get("status") or {}
        stages = {"prepare": status.get("prepare") or {}, **(status.get("stages") or {})}
        for name, stage in stages.items():
            before, now = seen.get((uid, name), 0), stage.get("attempt", 0)
            if now - before not in (0, 1):
                yield f"the attempt of {name} went from {before} to {now}"
            seen[uid, name] = now


def wrong_conditions(history: History) -> Iterator[str]:
    """Of four conditions exactly one is true, in each status that ever was."""
    for entry in history.of("RLHFJob"):
        found = (entry.item.get("status") or {}).get("conditions") or []
        true = [c["type"] for c in found if c["status"] == "True" and c["type"] in STATES]
        if found and len(true) != 1:
            yield f"true at the same time: {true}"


STATES: Final = ("Ready", "Reconciling", "Stalled", "Suspended")


async def play_all(
    cells: Iterable[Cell],
    plane: ControlPlane,
    nodes: FakeNodes,
    folder: Path,
) -> dict[str, list[str]]:
    """How each of them broke the rules, by its name; those that did not are left out."""
    return await _play(cells, AT_A_TIME, None, plane, nodes, folder)


async def play_storm(
    cells: Sequence[Cell],
    plane: ControlPlane,
    nodes: FakeNodes,
    folder: Path,
) -> dict[str, list[str]]:
    """The same of cells of one storm, which are struck together."""
    storm = Storm(cells[0].happening, plane, len(cells))
    return await _play(cells, len(cells), storm, plane, nodes, folder)


async def _play(
    cells: Iterable[Cell],
    at_a_time: int,
    storm: Storm | None,
    plane: ControlPlane,
    nodes: FakeNodes,
    folder: Path,
) -> dict[str, list[str]]:
    held, few = Held(), asyncio.Semaphore(at_a_time)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(at_a_time))
    broken: dict[str, list[str]] = {}

    async def run(cell: Cell, ledger: Ledger) -> None:
        async with few:
            story = Story(cell, plane, kubelet, held, nodes, storm)
            found = await asyncio.to_thread(_played, story, ledger, folder)
            if found:
                broken[str(cell)] = found
                print(f"{cell}:", *found, f"({story.log})", sep="\n  ")
            with contextlib.suppress(Exception):
                await asyncio.to_thread(plane.client.delete, "v1/namespaces", story.namespace)

    with Kubelet(plane.kubeconfig, held) as kubelet:
        async with Ledger(plane.kubeconfig, outlives=storm is not None) as ledger:
            await asyncio.gather(*(run(cell, ledger) for cell in cells))
    return broken


def _played(story: Story, ledger: Ledger, folder: Path) -> list[str]:
    found: list[str] = []
    try:
        found += story.play(ledger, folder)
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}")
        if story.storm:
            story.storm.call_off()
    log: Any = getattr(story, "log", None)
    if log and log.exists() and "mistake in the operator" in (text := log.read_text()):
        found.append(text[-2000:])
    return found
