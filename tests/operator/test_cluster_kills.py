"""The operator is killed before and after each of its writes; the end is the same each time.

Every run is a pipeline of its own, with a client, a cache and watches of its own. A killed operator
leaves what the API server has, and nothing else; the next one starts from that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cluster.client import PATIENCE
from cluster.kubelet import Kubelet, succeed
from cluster_jobs import Jobs, condition, manifest
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from rlhf_operator.api import Api, Object
from rlhf_operator.cache import Cache
from rlhf_operator.cluster import RLHFJOBS, KubernetesCluster
from rlhf_operator.discovery import discover, kinds
from rlhf_operator.metrics import Metrics
from rlhf_operator.names import LABEL_JOB, JobKey
from rlhf_operator.queue import WorkQueue
from rlhf_operator.render import Platform
from rlhf_operator.watches import CHILDREN, Watch, refresh_all
from rlhf_operator.work import work


class Killed(BaseException):
    """No handler may catch it."""


class Kill(NamedTuple):
    call: int
    when: Literal["before", "after"]


class MortalApi(Api):
    """Counts the writes of all lives of one job's operator, and ends one of them."""

    def __init__(self, client: ApiClient, kill: Kill | None, calls: list[str]) -> None:
        super().__init__(client)
        self._kill = kill
        self._calls = calls

    async def request(self, method: str, path: str, *rest: Any, **options: Any) -> Object:
        if method == "GET":
            return await super().request(method, path, *rest, **options)
        number = len(self._calls)
        self._calls.append(f"{method} {path}")
        if self._kill == (number, "before"):
            raise Killed
        answer = await super().request(method, path, *rest, **options)
        if self._kill == (number, "after"):
            raise Killed
        return answer


async def operate(settings: Configuration, key: JobKey, kill: Kill | None) -> list[str]:
    """Runs a job to Ready, through as many lives as it takes; the writes that were sent."""
    calls: list[str] = []
    is_ready = False
    while not is_ready:
        api = MortalApi(ApiClient(settings), kill, calls)
        try:
            await live(api, key)
            is_ready = True
        except* Killed:
            pass
        finally:
            await api.close()
    return calls


async def live(api: Api, key: JobKey) -> None:
    """One life of an operator: lists, watches and passes, until the job is Ready."""
    queue, ready = WorkQueue(), asyncio.Event()

    def changed(of: JobKey) -> None:
        if of == key:
            queue.add(of)
            if condition(cache.job(of), "Ready")[0] == "True":
                ready.set()

    cache = Cache(changed)
    served = await discover(api)
    cluster = KubernetesCluster(api, cache, Platform(served=kinds(served)), served)
    selector = f"{LABEL_JOB}={key.name}"
    watches = [Watch(api, cache, kind, key.namespace, selector) for kind in CHILDREN]
    job = Watch(api, cache, RLHFJOBS, key.namespace, "")
    await refresh_all([*watches, job])
    queue.add(key)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(watch.run()) for watch in watches]
        tasks.append(group.create_task(work(queue, cluster, Metrics(), 1)))
        await ready.wait()
        await asyncio.sleep(1.0)  # events follow the write
        for task in tasks:
            task.cancel()


async def try_all(kubeconfig: Path, jobs: Jobs) -> dict[str, list[str]]:
    """The writes of each run, by the name of its job."""
    settings = Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=settings)
    undisturbed = await operate(settings, JobKey(jobs.namespace, "calm"), None)
    kills = [
        Kill(number, when)  # type: ignore[arg-type]
        for number in range(len(undisturbed))
        for when in ("before", "after")
    ]
    few = asyncio.Semaphore(16)
    runs: dict[str, list[str]] = {"calm": undisturbed}

    async def run(kill: Kill) -> None:
        name = f"{kill.when}-{kill.call}"
        async with few:
            await asyncio.to_thread(
                jobs.create, manifest(jobs.namespace, name, nodes=1, stages="sft dpo")
            )
            async with asyncio.timeout(2 * PATIENCE):
                runs[name] = await operate(settings, JobKey(jobs.namespace, name), kill)

    async with asyncio.TaskGroup() as group:
        for kill in kills:
            group.create_task(run(kill))
    return runs


def outcome(job: Object) -> Object:
    """All of a status that must not depend on when an operator died."""
    stages = {"prepare": job["status"]["prepare"], **job["status"]["stages"]}
    return {
        name: {
            "attempt": stage["attempt"],
            "phase": stage["phase"],
            "hash": stage["hash"],
            "digest": (stage.get("checkpoint") or {}).get("digest"),
            "ends": (stage.get("faults", 0), stage.get("disruptions", 0)),
        }
        for name, stage in stages.items()
    }


def test_an_operator_may_be_killed_before_and_after_each_write(
    installed: Any, jobs: Jobs, play: Callable[..., Kubelet]
) -> None:
    play(succeed)
    jobs.create(manifest(jobs.namespace, "calm", nodes=1, stages="sft dpo"))
    runs = asyncio.run(try_all(installed.kubeconfig, jobs))
    expected = outcome(jobs.get("calm"))
    assert {name: outcome(jobs.get(name)) for name in runs} == dict.fromkeys(runs, expected)
    made = [job["metadata"]["labels"] for job in jobs.children("batch/v1/jobs")]
    assert len(made) == 3 * len(runs)  # prepare, sft, dpo: each ran once
    assert {labels["rlhf.dev/attempt"] for labels in made} == {"1"}
    assert len(runs) > 50  # that many writes, twice
