"""A thin client of the API server on kubernetes.aio: dicts in, dicts out, errors as one class.

The generated models cost more time than the requests, so the hot path goes without them.
"""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from rlhf_operator.credentials import Credentials, Login
from rlhf_operator.names import FIELD_MANAGER
from rlhf_operator.server_clock import ServerClock
from rlhf_operator.times import doubled

Object = dict[str, Any]
"""A Kubernetes object, decoded."""
Body = Object | Sequence[Object]
"""What is sent: an object, or the operations of a JSON patch."""

CONNECT_TIMEOUT: Final = 5.0
REQUEST_TIMEOUT: Final = 30.0
"""Seconds; what a server that does not answer may hold up."""
SILENCE: Final = 75.0
"""Seconds without even a bookmark, which come every minute, after which a watch counts as dead."""
WATCH_SECONDS: Final = 300
"""How long the server is asked to keep one watch open."""
PAGE: Final = 500
JSON: Final = "application/json"
METADATA_ONLY: Final = (
    "application/json;as=PartialObjectMetadata{list};g=meta.k8s.io;v=v1,application/json"
)
READING: Final = frozenset({"GET", "HEAD"})


class ApiError(Exception):
    """The API server refused or did not answer. `code`: HTTP status, 0 where there was none."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message or reason)
        self.code = code
        self.reason = reason

    @property
    def is_passing(self) -> bool:
        """Whether the same request may well succeed later."""
        return self.code in (0, 401, 408, 429) or self.code >= 500

    @property
    def says_gone(self) -> bool:
        """Whether the API server says that this very object is not there. Where nobody serves the
        path it names no reason, as does whatever else may answer in its place."""
        return self.code == 404 and self.reason == "NotFound"

    def __str__(self) -> str:
        return f"{self.code or 'no answer'} {self.reason}: {super().__str__()}"


class NotLeading(Exception):
    """A change was about to be made by a process that does not hold the lease (any more)."""


class Resource(NamedTuple):
    """Where objects of one kind are found."""

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """The URL's path; every namespace where none is given."""
        root = "/api/" if "/" not in self.api_version else "/apis/"
        scope = f"/namespaces/{namespace}" if namespace else ""
        rest = "".join(f"/{part}" for part in (name, subresource) if part)
        return f"{root}{self.api_version}{scope}/{self.plural}{rest}"


class Api:
    """The API server. Every method raises ApiError; those that change something, NotLeading."""

    def __init__(
        self,
        client: ApiClient,
        may_write: Callable[[], bool] = lambda: True,
        on_request: Callable[[str, str, int], None] = lambda verb, path, code: None,
        *,
        agent: str = FIELD_MANAGER,
        login: Login | None = None,
    ) -> None:
        """`on_request` is told verb, plural and HTTP status of each request.

        `agent`: what audit logs call this program. `login`: loads the credentials anew, once the
        server takes those of the client no longer.
        """
        self.clock = ServerClock()
        self._client = client
        self._credentials = Credentials(client.configuration, login)
        self._agent = agent
        self._may_write = may_write
        self._on_request = on_request

    @classmethod
    async def connect(
        cls,
        may_write: Callable[[], bool] = lambda: True,
        on_request: Callable[[str, str, int], None] = lambda verb, path, code: None,
    ) -> Api:
        """By KUBECONFIG or ~/.kube/config, else as the pod that this process runs in."""
        settings = client_settings()
        await _load(settings)
        return cls(client_of(settings), may_write, on_request, login=_load)

    @property
    def authority(self) -> Path | None:
        """The file with the certificates by which the API server is known; read once."""
        file = self._client.configuration.ssl_ca_cert
        return Path(file) if file else None

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.close()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        """One object."""
        return await self.request("GET", resource.path(namespace, name), label=resource.plural)

    async def create(self, resource: Resource, body: Object) -> Object:
        """The object as the server keeps it. 409 where one of that name is there.

        Not by server-side apply: that has no way to say "only if there is none", and would write
        into an object of somebody else.
        """
        path = resource.path(body["metadata"].get("namespace"))
        query = {"fieldManager": FIELD_MANAGER}
        return await self.request("POST", path, query, body, label=resource.plural)

    async def replace(self, resource: Resource, body: Object, subresource: str = "") -> Object:
        """Puts the object in place of the one of the same resourceVersion; 409 on any other."""
        meta = body["metadata"]
        path = resource.path(meta.get("namespace"), meta["name"], subresource)
        query = {"fieldManager": FIELD_MANAGER}
        return await self.request("PUT", path, query, body, label=resource.plural)

    async def apply(self, resource: Resource, body: Object) -> Object:
        """Server-side apply of fields that are ours; a `metadata.uid` in it pins the object."""
        path = resource.path(body["metadata"].get("namespace"), body["metadata"]["name"])
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        kind = "application/apply-patch+yaml"
        return await self.request("PATCH", path, query, body, kind, label=resource.plural)

    async def json_patch(
        self, resource: Resource, namespace: str, name: str, operations: Sequence[Object]
    ) -> Object:
        """The object after RFC 6902 operations; 422 where a `test` among them fails."""
        query = {"fieldManager": FIELD_MANAGER}
        kind = "application/json-patch+json"
        path = resource.path(namespace, name)
        return await self.request("PATCH", path, query, operations, kind, label=resource.plural)

    async def delete(
        self, resource: Resource, namespace: str, name: str, uid: str, propagation: str
    ) -> Object:
        """Deletes this very object, by its UID."""
        body = {"preconditions": {"uid": uid}, "propagationPolicy": propagation}
        path = resource.path(namespace, name)
        return await self.request("DELETE", path, body=body, label=resource.plural)

    async def list(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        selector: str = "",
        fields: str = "",
        metadata_only: bool = False,
    ) -> tuple[list[Object], int]:
        """All objects as they are now, not as a cache remembers them, and the list's version."""
        items: list[Object] = []
        query = {"limit": str(PAGE)} | _selectors(selector, fields)
        accept = METADATA_ONLY.format(list="List") if metadata_only else JSON
        while True:
            try:
                page = await self.request(
                    "GET", resource.path(namespace), query, accept=accept, label=resource.plural
                )
            except ApiError as error:
                if error.code != 410 or "limit" not in query:
                    raise
                # The server has forgotten that list: as a whole it cannot before its end.
                items, query = [], _selectors(selector, fields)
                continue
            items += page.get("items") or []  # a list of metadata says null
            version = int(page["metadata"]["resourceVersion"])
            if not page["metadata"].get("continue"):
                return [_typed(item, resource) for item in items], version
            query["continue"] = page["metadata"]["continue"]

    async def watch(
        self,
        resource: Resource,
        namespace: str | None,
        since: int,
        *,
        selector: str = "",
        fields: str = "",
        metadata_only: bool = False,
    ) -> AsyncIterator[tuple[str, Object]]:
        """Types and objects of what happens after `since`, with bookmarks, until it ends.

        ApiError(410) where the server does not remember that far back, and where it falls silent.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": str(since),
            "timeoutSeconds": str(WATCH_SECONDS),
        } | _selectors(selector, fields)
        accept = METADATA_ONLY.format(list="") if metadata_only else JSON
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=SILENCE)
        path = resource.path(namespace)
        response = await self._send("GET", path, query, None, JSON, accept, limits, "watch")
        try:
            async for line in _lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _error(event["object"].get("code", 500), event["object"])
                yield event["type"], _typed(event["object"], resource)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ApiError(0, "WatchBroken", str(error) or type(error).__name__) from None
        finally:
            response.close()

    async def lines(self, path: str, query: Mapping[str, str], label: str) -> AsyncIterator[bytes]:
        """The lines of an answer that is text, such as a pod's log, as they come."""
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT)
        response = await self._send("GET", path, query, None, JSON, "*/*", limits, label)
        try:
            async for line in _lines(response):
                yield line
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(0, "Unreadable", str(error) or type(error).__name__) from None
        finally:
            response.close()

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        content_type: str = JSON,
        *,
        accept: str = JSON,
        label: str = "",
        fenced: bool = True,
        timeout: float = REQUEST_TIMEOUT,
    ) -> Object:
        """The decoded answer. `fenced`: a change is made only while the lease is held."""
        if fenced and method not in READING and not self._may_write():
            raise NotLeading(f"{method} {path}")
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT)
        response = await self._send(method, path, query, body, content_type, accept, limits, label)
        try:
            answer: Object = json.loads(await response.read())
            return answer
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ApiError(0, "Unreadable", str(error) or type(error).__name__) from None

    async def _send(self, method: str, *what: Any) -> aiohttp.ClientResponse:
        """Once more with credentials that were loaded anew, where those in use are refused. A
        change is not sent again: the lease may be lost by then."""
        used = self._credentials.number
        try:
            return await self._send_once(method, *what)
        except ApiError as error:
            is_new = error.code == 401 and await self._credentials.renewed(used)
            if not is_new or method not in READING:
                raise
        return await self._send_once(method, *what)

    async def _send_once(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Body | None,
        content_type: str,
        accept: str,
        limits: aiohttp.ClientTimeout,
        label: str,
    ) -> aiohttp.ClientResponse:
        headers = {"Content-Type": content_type, "Accept": accept, "User-Agent": self._agent}
        client = self._client
        url = client.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        code, sent = 0, self.clock.own()
        try:
            # Now and then this reads the token anew from its file.
            await client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
            answer = await client.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=limits
            )
            response: aiohttp.ClientResponse = answer.response
            code = response.status
            self.clock.hear(response.headers.get("Date"), sent)
            if code < 300:
                return response
            raise _error(code, _decoded(await response.read()))
        except (aiohttp.ClientError, TimeoutError, OSError, config.ConfigException) as error:
            raise ApiError(0, "Unreachable", str(error) or type(error).__name__) from None
        finally:
            self._on_request(method, label, code)


def client_settings() -> Configuration:
    """Settings without a most of connections, which are 100 by default: each watch and each log
    that is followed holds one for ever, and at the most of them every request would wait in vain.

    Nor does aiohttp look into the environment: before each request it would ask for a proxy and for
    ~/.netrc, in threads, which takes more CPU time than all else of the request.
    """
    return Configuration(connection_pool_maxsize=0, client_session_kwargs={"trust_env": False})


def client_of(settings: Configuration) -> ApiClient:
    """A client by settings that a login has filled in: through the kubeconfig's proxy, else through
    that of the environment. As for kubectl, ~/.netrc holds nothing that concerns a cluster."""
    settings.proxy = settings.proxy or _proxy_to(settings.host)
    return ApiClient(settings)


def _proxy_to(url: str) -> str | None:
    """By HTTPS_PROXY, HTTP_PROXY and NO_PROXY."""
    server = urlsplit(url)
    if proxy_bypass(server.hostname or ""):
        return None
    return getproxies().get(server.scheme)


async def _load(settings: Configuration) -> None:
    with warnings.catch_warnings():  # in a pod it says that this might not work
        warnings.filterwarnings("ignore", "kube_config_path not provided")
        await config.load_config(client_configuration=settings)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of any length. aiohttp's own end with an error of another kind at 4 MiB, which an
    object that etcd takes may have as JSON: there each `<` is six bytes."""
    parts: list[bytes] = []
    async for block in response.content.iter_any():
        first, *others = block.split(b"\n")
        parts.append(first)
        for begun in others:
            yield b"".join(parts)
            parts = [begun]
    if rest := b"".join(parts):
        yield rest


def _selectors(labels: str, fields: str) -> dict[str, str]:
    found = {"labelSelector": labels, "fieldSelector": fields}
    return {name: text for name, text in found.items() if text}


def _typed(item: Object, resource: Resource) -> Object:
    """Items of a list, and partial ones, do not say what they are."""
    return {**item, "apiVersion": resource.api_version, "kind": resource.kind}


def _decoded(text: bytes) -> Object:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"message": text[:512].decode(errors="replace")}


def _error(code: int, status: Object) -> ApiError:
    return ApiError(int(code), status.get("reason") or "Error", status.get("message") or "")


async def pause_after(failures: int, first: float = 0.5, ceiling: float = 30.0) -> None:
    """Sleeps longer after each failure in a row, up to the ceiling."""
    await asyncio.sleep(doubled(first, failures + 1, ceiling))
