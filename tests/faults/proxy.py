"""Between one operator process and the API server: notes what is written, and injects faults.

Reads, watches and events pass. Writes pass one at a time, so that it is known what came before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from aiohttp import web
from cluster.kubelet.api import Connection
from yarl import URL

from faults.audit import Audit
from faults.weather import OLDEST, Weather

REASONS: Final = {
    "401": "Unauthorized",
    "409": "Conflict",
    "429": "TooManyRequests",
    "500": "InternalError",
    "503": "ServiceUnavailable",
    "504 after": "Timeout",
}
UNCOUNTED: Final = ("events", "leases", "tokenreviews")
OF_ONE_CONNECTION: Final = ("connection", "content-length", "host", "transfer-encoding")


class Proxy:
    """Serves one life of an operator; once `kill` was called nothing of it gets through."""

    def __init__(
        self, kubeconfig: Path, audit: Audit, weather: Weather, kill: Callable[[], None]
    ) -> None:
        self.killed = asyncio.Event()
        self.watched = asyncio.Event()
        """Set when a watch of RLHFJobs was asked for: the operator is up."""
        self._to = Connection.from_kubeconfig(kubeconfig)
        self._audit = audit
        self._weather = weather
        self._kill = kill
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        tls = ssl.create_default_context(cafile=self._to.ca_file)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()
        await self._session.close()

    def write_kubeconfig(self, file: Path) -> None:
        """The way to here, as the user of the kubeconfig that was given."""
        port = self._runner.addresses[0][1]
        cluster = {"server": f"http://127.0.0.1:{port}"}
        config: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "proxy", "cluster": cluster}],
            "users": [{"name": "user", "user": {"token": self._to.token}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "user"}}],
            "current-context": "proxy",
        }
        file.touch(mode=0o600)
        file.write_text(json.dumps(config))

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self.killed.is_set():
            return _cut(request)
        if code := self._weather.refuses:
            return refusal(int(code), REASONS[code], request)
        if is_counted(request):
            async with self._turn:
                if self.killed.is_set():
                    return _cut(request)
                return await self._write(request, body)
        if request.query.get("watch"):
            return await self._stream(request)
        return await self._forward(request, body)

    async def _write(self, request: web.Request, body: bytes) -> web.Response:
        call = self._audit.take(request.method, request.path, body)
        if call.fault == "killed before":
            return self._end(request)
        if call.fault in ("409", "429", "500", "503"):
            return refusal(int(call.fault), REASONS[call.fault], request)
        answer = await self._forward(request, body)
        self._audit.carried_out(call, answer.status, body)
        self._weather.notice(call.name)
        if call.fault == "killed after":
            return self._end(request)
        if call.fault == "504 after":
            return refusal(504, REASONS[call.fault], request)
        return _cut(request) if call.fault == "cut after" else answer

    def _end(self, request: web.Request) -> web.Response:
        self._kill()
        self.killed.set()
        return _cut(request)

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        async with self._send(request, body) as answer:
            content = await answer.read()
            return web.Response(body=content, status=answer.status, headers=_passed(answer))

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/rlhfjobs"):
            self.watched.set()
        had_turned = self._weather.turned.is_set()
        async with self._send(request, b"") as answer:
            response = web.StreamResponse(status=answer.status, headers=_passed(answer))
            await response.prepare(request)
            passing = asyncio.ensure_future(self._pass_on(answer, response, had_turned))
            turning = asyncio.ensure_future(self._weather.turned.wait())
            try:
                await asyncio.wait({passing, turning}, return_when=asyncio.FIRST_COMPLETED)
                if had_turned or not self._weather.cuts:
                    await passing
                elif not passing.done():
                    _cut(request)
            finally:
                passing.cancel()
                turning.cancel()
                await asyncio.gather(passing, turning, return_exceptions=True)
            return response

    async def _pass_on(
        self, answer: aiohttp.ClientResponse, response: web.StreamResponse, had_turned: bool
    ) -> None:
        with contextlib.suppress(ConnectionResetError):  # nobody listens any more
            async for chunk in answer.content.iter_any():
                if had_turned or not self._weather.is_silent:
                    await response.write(chunk)
            await response.write_eof()

    def _send(self, request: web.Request, body: bytes) -> Any:
        url = URL(f"{self._to.server}{request.raw_path}", encoded=True)
        if request.query.get("watch") and self._weather.sends_back(request.path):
            url = url.update_query(resourceVersion=OLDEST)
        return self._session.request(
            request.method, url, headers=_passed(request), data=body or None
        )


def is_counted(request: web.Request) -> bool:
    """Whether it changes what a later life of the operator finds."""
    parts = request.path.split("/")
    return request.method not in ("GET", "HEAD") and not any(p in UNCOUNTED for p in parts)


def refusal(code: int, reason: str, request: web.Request) -> web.Response:
    """As the API server words it; a name that is taken is a conflict of its own."""
    if code == 409 and request.method == "POST":
        reason = "AlreadyExists"
    status = {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": f"{reason}: injected",
    }
    return web.json_response(status, status=code)


def _passed(message: web.Request | aiohttp.ClientResponse) -> list[tuple[str, str]]:
    items = message.headers.items()
    return [(name, value) for name, value in items if name.lower() not in OF_ONE_CONNECTION]


def _cut(request: web.Request) -> web.Response:
    """No answer: the connection is gone when the server wants to write it."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
