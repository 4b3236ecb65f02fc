"""The few requests that a kubelet makes, on plain dicts."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import yaml

Object = dict[str, Any]

BOUND: Final = "spec.nodeName!="
PODS: Final = "/api/v1/pods?fieldSelector=spec.nodeName%21%3D"
STRATEGIC: Final = "application/strategic-merge-patch+json"
RETRIED: Final = (429, 500, 502, 503, 504)
LONGEST_PAUSE: Final = 1.0


class Connection(NamedTuple):
    """Where the API server is, and as whom to talk to it."""

    server: str
    token: str
    ca_file: Path

    @classmethod
    def from_kubeconfig(cls, file: Path) -> Connection:
        """The first cluster and user of a kubeconfig that names a token and a CA file."""
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        return cls(cluster["server"], user["token"], Path(cluster["certificate-authority"]))


def session(connection: Connection, limit: int) -> aiohttp.ClientSession:
    """Requests to the API server, as the connection's user; `limit` of them at a time, 0: all."""
    return aiohttp.ClientSession(
        connection.server,
        headers={"Authorization": f"Bearer {connection.token}"},
        connector=aiohttp.TCPConnector(
            ssl=ssl.create_default_context(cafile=connection.ca_file), limit=limit
        ),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
        read_bufsize=1 << 22,
    )


class WatchExpired(Exception):
    """The watch cannot go on; list again."""


class Api:
    """Requests to the API server. Each is repeated until the server answers."""

    def __init__(self, connection: Connection) -> None:
        self._session = session(connection, limit=32)

    async def close(self) -> None:
        """Ends all requests."""
        await self._session.close()

    async def get(self, path: str) -> Object | None:
        """An object or a list; None where there is none."""
        return await self._answer("GET", path)

    async def post(self, path: str, body: Object) -> Object | None:
        """Creates an object; None where its namespace is gone or going."""
        return await self._answer("POST", path, json=body, absent=(403, 404, 409))

    async def patch_status(self, pod: Object, status: Object) -> Object | None:
        """The pod as it is now; None where this pod, by its UID, is gone."""
        uid = pod["metadata"]["uid"]
        body = json.dumps({"metadata": {"uid": uid}, "status": status})
        while True:
            path = f"{path_of(pod)}/status"
            if written := await self._answer("PATCH", path, content=STRATEGIC, data=body):
                return written
            there = await self.get(path_of(pod))
            if there is None or there["metadata"]["uid"] != uid:
                return None

    async def patch_node(self, node: str, port: int) -> None:
        """Tells where the node's kubelet listens. A node that is gone is nobody's concern."""
        body = {"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}}
        path = f"/api/v1/nodes/{node}/status"
        await self._answer("PATCH", path, content=STRATEGIC, data=json.dumps(body))

    async def delete_now(self, pod: Object) -> None:
        """The last step of a graceful deletion: the object goes, as far as its finalizers allow."""
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        await self._answer("DELETE", path_of(pod), json=body)

    async def watch_pods(self, version: str) -> AsyncIterator[tuple[str, Object]]:
        """(ADDED | MODIFIED | DELETED | BOOKMARK, pod). WatchExpired: list again."""
        query = {
            "watch": "1",
            "fieldSelector": BOUND,
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": "300",
        }
        async with self._session.get("/api/v1/pods", params=query) as answer:
            if answer.status != 200:
                raise WatchExpired(await answer.text())
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise WatchExpired(event["object"].get("message"))
                yield event["type"], event["object"]

    async def _answer(
        self,
        method: str,
        path: str,
        content: str = "application/json",
        absent: Collection[int] = (404, 409),
        **body: Any,
    ) -> Object | None:
        pause = 0.05
        while True:
            headers = {"Content-Type": content}
            try:
                async with self._session.request(method, path, headers=headers, **body) as answer:
                    if answer.status in absent:
                        return None
                    if answer.status not in RETRIED:
                        return await _decoded(answer)
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError):
                pass
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


async def _decoded(answer: aiohttp.ClientResponse) -> Object:
    if not answer.ok:
        text = await answer.text()
        raise RuntimeError(f"{answer.method} {answer.url.path}: {answer.status} {text[:2000]}")
    found: Object = await answer.json()
    return found


def path_of(pod: Object) -> str:
    """Address of a pod."""
    meta = pod["metadata"]
    return f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
