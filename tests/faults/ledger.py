"""What was ever true on the API server: every version of every RLHFJob, Job and pod, by watches.

Independent of the operator and of the proxy before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import aiohttp
from cluster.kubelet.api import Connection, session

Object = dict[str, Any]

RESOURCES: Final = {
    "RLHFJob": "/apis/rlhf.dev/v1alpha1/rlhfjobs",
    "Job": "/apis/batch/v1/jobs",
    "Pod": "/api/v1/pods",
}


WATCH: Final = {"watch": "true", "timeoutSeconds": "3600", "allowWatchBookmarks": "true"}


class Watch(NamedTuple):
    """An answer that goes on, and from which version on."""

    answer: aiohttp.ClientResponse
    version: str


class Entry(NamedTuple):
    """One version of an object, or its end."""

    kind: str
    type: str  # ADDED, MODIFIED, DELETED
    item: Object

    @property
    def version(self) -> int:
        """Kubernetes promises that these are numbers that rise."""
        return int(self.item["metadata"]["resourceVersion"])


class History(list[Entry]):
    """All of one namespace; entries of one kind are in order."""

    def of(self, kind: str) -> list[Entry]:
        """The entries of one kind."""
        return [entry for entry in self if entry.kind == kind]

    def there(self, kind: str) -> dict[str, Object]:
        """The objects of one kind that there are now, by name."""
        found: dict[str, Object] = {}
        for entry in self.of(kind):
            name = entry.item["metadata"]["name"]
            found.pop(name, None)
            if entry.type != "DELETED":
                found[name] = entry.item
        return found


class Ledger:
    """Written while it is entered as a context, from what there is at its start.

    `outlives`: the API server may go and come back. What was the last to happen before it went, of
    which the watches tell no more, is then seen as it has become.
    """

    def __init__(self, kubeconfig: Path, *, outlives: bool = False) -> None:
        self._outlives = outlives
        self._to = Connection.from_kubeconfig(kubeconfig)
        self._histories: dict[str, History] = defaultdict(History)
        self._news = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._session = session(self._to, limit=0)
        watches = {kind: await self._open(path) for kind, path in RESOURCES.items()}
        self._tasks = [asyncio.create_task(self._follow(*of)) for of in watches.items()]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()
        for end in ends:
            if isinstance(end, Exception):
                raise end

    def history(self, namespace: str) -> History:
        """All that is known of a namespace so far; it grows."""
        return self._histories[namespace]

    async def wait(self, namespace: str, holds: Callable[[History], bool]) -> None:
        """Until it holds."""
        async with self._news:
            await self._news.wait_for(lambda: holds(self._histories[namespace]))

    async def _open(self, path: str) -> Watch:
        """A watch from now on; a resource that was installed a moment ago takes a while."""
        while True:
            listed = await self._session.get(path, params={"limit": "1"})
            if listed.ok:
                version = (await listed.json())["metadata"]["resourceVersion"]
                watch = await self._session.get(path, params=WATCH | {"resourceVersion": version})
                if watch.ok:
                    return Watch(watch, version)
            await asyncio.sleep(0.1)

    async def _follow(self, kind: str, watch: Watch) -> None:
        """The API server ends a watch that reads too slowly for it: the next one goes on there."""
        while True:
            try:
                async with watch.answer as answer:
                    version = await self._read(kind, answer, watch.version)
                query = WATCH | {"resourceVersion": version}
                answer = await self._session.get(RESOURCES[kind], params=query)
                answer.raise_for_status()
                watch = Watch(answer, version)
            except (aiohttp.ClientError, ConnectionError):
                if not self._outlives:
                    raise
                watch = await self._take_up(kind)

    async def _take_up(self, kind: str) -> Watch:
        """What there is now, and a watch from then on, once the API server is back."""
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                listed = await self._session.get(RESOURCES[kind])
                if listed.ok:
                    found = await listed.json()
                    await self._compare(kind, found["items"])
                    version = found["metadata"]["resourceVersion"]
                    query = WATCH | {"resourceVersion": version}
                    answer = await self._session.get(RESOURCES[kind], params=query)
                    if answer.ok:
                        return Watch(answer, version)
            await asyncio.sleep(0.1)

    async def _compare(self, kind: str, items: list[Object]) -> None:
        """Writes down in what the objects differ from those that are known."""
        known = {
            item["metadata"]["uid"]: item
            for history in list(self._histories.values())
            for item in history.there(kind).values()
        }
        for item in items:
            before = known.pop(item["metadata"]["uid"], None)
            if before is None or before["metadata"] != item["metadata"]:
                await self._write(Entry(kind, "MODIFIED" if before else "ADDED", item))
        for gone in known.values():
            await self._write(Entry(kind, "DELETED", gone))

    async def _read(self, kind: str, answer: aiohttp.ClientResponse, version: str) -> str:
        """What comes, until the end; the version up to which all is known then."""
        with contextlib.suppress(aiohttp.ClientPayloadError):
            async for line in answer.content:
                if not line.endswith(b"\n"):
                    break
                event = json.loads(line)
                if event["type"] != "BOOKMARK":
                    await self._write(Entry(kind, event["type"], event["object"]))
                version = event["object"]["metadata"]["resourceVersion"]
        return version

    async def _write(self, entry: Entry) -> None:
        if entry.type == "ERROR":
            raise ConnectionError(f"watch of {entry.kind} objects: {entry.item}")
        self._histories[entry.item["metadata"]["namespace"]].append(entry)
        async with self._news:
            self._news.notify_all()
