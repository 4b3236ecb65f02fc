"""The kubelet's server, as far as the API server asks it for logs: `kubectl logs`."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from cluster.kubelet.status import rfc3339
from cluster.kubelet.worker import Worker

PATH: Final = "/containerLogs/{namespace}/{pod}/{container}"
LOOK_EVERY: Final = 0.05
"""Seconds between two looks at a log that is followed."""

Find = Callable[[str, str], Worker | None]
"""By namespace and name."""


class LogServer:
    """Listens on the loopback interface; the API server does not ask who it is."""

    def __init__(self, find: Find, certificate: Path) -> None:
        """`certificate` has its key beside it, with the suffix `.key`."""
        self.port = 0
        self._find = find
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(certificate, certificate.with_suffix(".key"))
        app = web.Application()
        app.router.add_get(PATH, self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)

    async def start(self) -> None:
        """The port is known afterwards."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Ends what is followed, too."""
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        worker = self._find(request.match_info["namespace"], request.match_info["pod"])
        if worker is None or worker.container is None:
            raise web.HTTPNotFound(text="the container has not been made\n")
        if request.query.get("previous") == "true":
            raise web.HTTPBadRequest(text="no container was restarted here\n")
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        follow = request.query.get("follow") == "true"
        tail = request.query.get("tailLines")
        mark = f"{rfc3339(worker.container.started_at)} " if "timestamps" in request.query else ""
        async for line in _lines(worker, follow, None if tail is None else int(tail)):
            await response.write(f"{mark}{line}".encode())
        return response


async def _lines(worker: Worker, follow: bool, tail: int | None) -> AsyncIterator[str]:
    """Whole lines, with their ends, and what stands after the last one when all is over."""
    assert worker.container is not None
    is_over = worker.has_ended or not follow
    lines = worker.container.log().splitlines(keepends=True)
    told = len(lines)
    for line in lines if tail is None else lines[max(0, told - tail) :]:
        if is_over or line.endswith("\n"):
            yield line
        else:
            told -= 1
    while not is_over:
        await asyncio.sleep(LOOK_EVERY)
        is_over = worker.has_ended
        lines = worker.container.log().splitlines(keepends=True)
        if not is_over and lines and not lines[-1].endswith("\n"):
            lines.pop()
        for line in lines[told:]:
            yield line
        told = len(lines)
