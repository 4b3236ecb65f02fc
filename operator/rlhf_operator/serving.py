"""Probes and metrics over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web

from rlhf_operator.metrics import Metrics

HUNG: Final = 240.0
"""Seconds without a sign of life of a watch or of the event loop, after which to start anew."""


class Probes:
    """/healthz, /readyz and /metrics."""

    def __init__(
        self,
        ages: Callable[[], Mapping[str, float]],
        is_ready: Callable[[], bool],
        metrics: Metrics,
    ) -> None:
        """`ages`: seconds since each watch gave a sign of life."""
        self._ages = ages
        self._is_ready = is_ready
        self._metrics = metrics
        self._beat = time.monotonic()

    async def serve(self, port: int) -> None:
        """Until it is cancelled."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics.handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, None, port).start()
            while True:
                self._beat = time.monotonic()
                await asyncio.sleep(1.0)
        finally:
            await runner.cleanup()

    async def _healthz(self, request: web.Request) -> web.Response:
        """Not whether the API server answers: a new process would not reach it either."""
        ages = {**self._ages(), "loop": time.monotonic() - self._beat}
        is_well = all(age < HUNG for age in ages.values())
        shown = {name: round(age) for name, age in ages.items()}
        return web.json_response({"seconds since": shown}, status=200 if is_well else 503)

    async def _readyz(self, request: web.Request) -> web.Response:
        is_ready = self._is_ready()
        return web.Response(text="ok" if is_ready else "starting", status=200 if is_ready else 503)
