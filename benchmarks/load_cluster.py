"""What operator_load.py runs on: the test control plane, one huge node, and a plain client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from cluster.binaries import find_binaries
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Scripted, succeed
from cluster.kubelet.api import Connection, session
from cluster.nodes import FakeNodes

ROOT: Final = Path(__file__).parents[1]

Object = dict[str, Any]
ItemT = TypeVar("ItemT")

NAMESPACE: Final = "load"
FLOOR: Final = "floor"
CLAIM: Final = "checkpoints"
SENDERS: Final = 32
"""Requests that the plain client has under way at a time."""
RLHFJOBS_OF: Final = "/apis/rlhf.dev/v1alpha1/namespaces/{namespace}/rlhfjobs"
RLHFJOBS: Final = RLHFJOBS_OF.format(namespace=NAMESPACE)
PODS: Final = "/api/v1/namespaces/{namespace}/pods"
JOBS: Final = "/apis/batch/v1/namespaces/{namespace}/jobs"
CONFIG_MAPS: Final = "/api/v1/namespaces/{namespace}/configmaps"


@contextlib.contextmanager
def running_cluster(directory: Path) -> Iterator[ControlPlane]:
    """A control plane that serves RLHFJobs, with a node that has room for every pod.

    It collects its garbage as often as Go does by itself; in tests it may use more memory.
    """
    os.environ.setdefault("GOGC", "100")
    with (
        ControlPlane(find_binaries(), directory) as control_plane,
        FakeNodes(control_plane.client) as nodes,
    ):
        client = control_plane.client
        crd = yaml.safe_load((ROOT / "crds" / "rlhf.dev_rlhfjobs.yaml").read_text())
        client.define(crd)
        for namespace in (NAMESPACE, FLOOR):
            client.create(_object("v1", "Namespace", namespace))
            accounts = "v1/serviceaccounts"
            client.wait_for(accounts, "default", lambda found: found is not None, namespace)
            client.create(_claim(), namespace)
        nodes.add({"nvidia.com/gpu": 10**6}, cpu=10**6, memory="1000Ti", pods=10**6)
        yield control_plane


def _object(version: str, kind: str, name: str) -> Object:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}}


def _claim() -> Object:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    return {**_object("v1", "PersistentVolumeClaim", CLAIM), "spec": spec}


def manifest(name: str, namespace: str = NAMESPACE) -> Object:
    """An RLHFJob of three stages, which is prepared first: four Jobs one after another."""
    stages = {stage: {"data": {"source": "hf://org/data"}} for stage in ("sft", "reward", "ppo")}
    spec: Object = {
        "model": {"source": "hf://org/model"},
        "checkpoints": {"existingClaim": CLAIM},
        "resources": {"nodes": 1, "gpusPerNode": 1},
        "stages": stages,
    }
    made = _object("rlhf.dev/v1alpha1", "RLHFJob", name)
    return {**made, "metadata": {"name": name, "namespace": namespace}, "spec": spec}


@contextlib.contextmanager
def running_kubelet(kubeconfig: Path) -> Iterator[None]:
    """Plays every pod, from a process of its own: each ends well as soon as it has begun."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=_play_pods, args=(kubeconfig, stop), daemon=True)
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join(30)
        process.kill()


def _play_pods(kubeconfig: Path, stop: Event) -> None:
    with Kubelet(kubeconfig, Scripted(succeed)):
        stop.wait()


class PlainClient:
    """Requests without a look at what is there: as fast as the API server answers."""

    def __init__(self, kubeconfig: Path) -> None:
        self._session = session(Connection.from_kubeconfig(kubeconfig), limit=0)

    async def close(self) -> None:
        """Ends all requests."""
        await self._session.close()

    async def post(self, path: str, body: Object) -> bytes:
        """Creates an object, and gives it as it is kept."""
        return await self._send("POST", path, body, 201)

    async def put(self, path: str, body: Object) -> bytes:
        """Puts an object in place of the one of the same version."""
        return await self._send("PUT", path, body, 200)

    async def _send(self, verb: str, path: str, body: Object, expected: int) -> bytes:
        async with self._session.request(verb, path, json=body) as answer:
            if answer.status != expected:
                raise SystemExit(f"{verb} {path}: {answer.status} {(await answer.text())[:2000]}")
            return await answer.read()

    async def post_all(self, path: str, bodies: Iterable[Object]) -> None:
        """Creates objects, SENDERS at a time."""

        async def post(body: Object) -> None:
            await self.post(path, body)

        await each(bodies, post)

    async def delete_all(self, path: str) -> None:
        """Deletes every object there, and what belongs to it; pods without a grace period."""
        query = {"propagationPolicy": "Background", "gracePeriodSeconds": "0"}
        async with self._session.delete(path, params=query) as answer:
            answer.raise_for_status()
            await answer.read()

    async def count(self, path: str) -> int:
        """How many objects there are."""
        async with self._session.get(path, params={"limit": "1"}) as answer:
            found = await answer.json()
        rest: int = found["metadata"].get("remainingItemCount", 0)
        return len(found["items"] or []) + rest

    async def text(self, path: str) -> str:
        """An answer as it is."""
        async with self._session.get(path) as answer:
            return await answer.text()

    async def watch(self, path: str) -> AsyncIterator[Object]:
        """All that is there and each change of it, for ever; what was told may be told again.

        The API server ends the watch of whoever reads too slowly. It goes on where it was: begun
        anew it would be told everything once more, and be slower still.
        """
        while True:
            async with self._session.get(path) as answer:
                found = await answer.json() if answer.status == 200 else {}
            for item in found.get("items", ()):
                yield item
            since = found.get("metadata", {}).get("resourceVersion")
            while since:
                async for item in self._changes(path, since):
                    if item is None:
                        since = None
                        break
                    since = item["metadata"]["resourceVersion"]
                    yield item
            await asyncio.sleep(0.1)  # 429: the API server is not ready to tell

    async def _changes(self, path: str, since: str) -> AsyncIterator[Object | None]:
        """Until the API server ends it; None where it does not know `since` any more."""
        query = {"watch": "1", "resourceVersion": since}
        async with self._session.get(path, params=query) as answer:
            if answer.status != 200:
                yield None
                return
            async for line in answer.content:
                event = json.loads(line)
                yield None if event["type"] == "ERROR" else event["object"]


async def each(items: Iterable[ItemT], act: Callable[[ItemT], Awaitable[None]]) -> None:
    """Acts on all of them, SENDERS at a time."""
    left = iter(items)

    async def send() -> None:
        for item in left:
            await act(item)

    await asyncio.gather(*(send() for _ in range(SENDERS)))
