"""The kubelets of a set of nodes, in one thread: a task for each pod that is bound to them."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiohttp

from cluster.client import PATIENCE
from cluster.kubelet.api import PODS, Api, Connection, Object, WatchExpired
from cluster.kubelet.logs import LogServer
from cluster.kubelet.runtime import Container, Runtime
from cluster.kubelet.status import EVICTED
from cluster.kubelet.worker import Worker
from cluster.loop_thread import LoopThread, end_other_tasks
from cluster.nodes import FakeNode

T = TypeVar("T")
PAUSE: Final = 0.05
"""Seconds between two tries to watch."""


class Kubelet:
    """Runs as long as its `with` block. All nodes are its own, unless some are given.

    Methods may be called from any thread; a pod is given as the API server has it.
    """

    def __init__(
        self, kubeconfig: Path, runtime: Runtime, nodes: Iterable[FakeNode] | None = None
    ) -> None:
        self.api: Api
        self._connection = Connection.from_kubeconfig(kubeconfig)
        self._runtime = runtime
        self._nodes = None if nodes is None else {node.name: node for node in nodes}
        self._loop = LoopThread("kubelet")
        self._workers: dict[str, Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._contacts: dict[str, asyncio.Event] = {}
        self._unheard: dict[str, dict[str, Callable[[], None]]] = {}
        self._errors: list[BaseException] = []
        self._known: set[str] = set()  # nodes whose kubelet the API server can ask for logs

    def __enter__(self) -> Self:
        self._loop.start()
        listed = threading.Event()
        self._loop.do(self._open(listed))
        if not listed.wait(PATIENCE):
            raise TimeoutError("the API server does not list pods")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.stop(self._close())
        if self._errors and error is None:
            raise self._errors[0]

    # Faults

    def kill(self, pod: Object, rank: int | None = None) -> None:
        """SIGKILL to the pod's processes, or to one rank's alone."""
        self._loop.do(self._with(pod, lambda container: container.kill(rank=rank)))

    def oom(self, pod: Object) -> None:
        """SIGKILL by the kernel, as the pod has used more memory than it may."""
        self._loop.do(self._with(pod, lambda container: container.kill("OOMKilled")))

    def evict(self, pod: Object) -> None:
        """As the eviction manager does when the node is low on memory; without a grace period."""
        self._loop.soon(self._evict, pod)

    def lose_node(self, node: str) -> None:
        """The machine is cut off: no heartbeats, nothing heard, nothing said; its pods go on."""
        if self._nodes:
            self._nodes[node].lose()
        self._loop.soon(self._contact(node).clear)

    def recover_node(self, node: str) -> None:
        """It is back: the kubelet reports what has happened, and hears what it has missed."""
        if self._nodes:
            self._nodes[node].recover()
        self._loop.soon(self._recover, node)

    def log(self, pod: Object) -> str:
        """What the pod has written so far."""
        return self._loop.do(self._with(pod, lambda container: container.log()))

    def _evict(self, pod: Object) -> None:
        if worker := self._find(pod):
            worker.judge(EVICTED)

    def _recover(self, node: str) -> None:
        self._contact(node).set()
        for deliver in self._unheard.pop(node, {}).values():
            deliver()

    async def _with(self, pod: Object, act: Callable[[Container], T]) -> T:
        worker = self._find(pod)
        if worker is None or worker.container is None:
            raise LookupError(f"no container of {pod['metadata']['name']} runs on these nodes")
        return act(worker.container)

    def _find(self, pod: Object) -> Worker | None:
        return self._workers.get(pod["metadata"]["uid"])

    def _named(self, namespace: str, name: str) -> Worker | None:
        wanted = (namespace, name)
        metas = ((worker.pod["metadata"], worker) for worker in self._workers.values())
        return next((w for meta, w in metas if (meta["namespace"], meta["name"]) == wanted), None)

    # What the thread does

    async def _open(self, listed: threading.Event) -> None:
        self.api = Api(self._connection)
        self._logs = LogServer(self._named, self._connection.ca_file)
        await self._logs.start()
        self._start(self._follow(listed))

    async def _close(self) -> None:
        await self._logs.close()
        await end_other_tasks()
        for worker in self._workers.values():
            if worker.container:
                worker.container.close()
        await self.api.close()

    async def _follow(self, listed: threading.Event) -> None:
        """Lists, then watches; again whenever the watch cannot go on."""
        while True:
            try:
                version = await self._list()
                listed.set()
                while True:
                    async for kind, pod in self.api.watch_pods(version):
                        version = pod["metadata"]["resourceVersion"]
                        self._hear(kind, pod)
            except (WatchExpired, aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(PAUSE)

    async def _list(self) -> str:
        answer = await self.api.get(PODS) or {}
        there = {pod["metadata"]["uid"]: pod for pod in answer["items"]}
        for worker in list(self._workers.values()):
            if worker.pod["metadata"]["uid"] not in there:
                self._hear("DELETED", worker.pod)
        for pod in there.values():
            self._hear("ADDED", pod)
        version: str = answer["metadata"]["resourceVersion"]
        return version

    def _hear(self, kind: str, pod: Object) -> None:
        """Hands an event to the pod's worker; a node without contact hears it when it is back."""
        node = pod.get("spec", {}).get("nodeName")
        if kind == "BOOKMARK" or not node or (self._nodes is not None and node not in self._nodes):
            return
        if self._contact(node).is_set():
            self._deliver(kind, pod)
        else:
            held = self._unheard.setdefault(node, {})
            held[pod["metadata"]["uid"]] = lambda: self._deliver(kind, pod)

    def _deliver(self, kind: str, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        worker = self._workers.get(uid)
        if worker is None and kind != "DELETED":
            self._workers[uid] = Worker(
                pod, self._runtime, self, self._contact(pod["spec"]["nodeName"])
            )
            self._start(self._live(uid))
        elif worker and kind == "DELETED":
            worker.notice_gone()
        elif worker:
            worker.notice(pod)

    async def _live(self, uid: str) -> None:
        await self._announce(self._workers[uid].pod["spec"]["nodeName"])
        await self._workers[uid].live()
        del self._workers[uid]

    async def _announce(self, node: str) -> None:
        """Where the API server finds this kubelet, once for each node."""
        if node not in self._known:
            self._known.add(node)
            await self.api.patch_node(node, self._logs.port)

    def _contact(self, node: str) -> asyncio.Event:
        if node not in self._contacts:
            self._contacts[node] = asyncio.Event()
            self._contacts[node].set()
        return self._contacts[node]

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # the loop itself holds no reference
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            traceback.print_exception(error)
            self._errors.append(error)
