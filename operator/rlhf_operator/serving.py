"""Probes and metrics over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
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
        authority: Path | None = None,
    ) -> None:
        """`ages`: seconds since each watch gave a sign of life. `authority`: the certificates by
        which this process knows the API server, and knows it for as long as it lives."""
        self._ages = ages
        self._is_ready = is_ready
        self._metrics = metrics
        self._authority = authority
        self._trusted = self._certificates()
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
        """Not whether the API server answers: a new process would not reach it either, unless the
        certificates by which it is known have been renewed."""
        ages = {**self._ages(), "loop": time.monotonic() - self._beat}
        is_renewed = self._certificates() not in (self._trusted, None)
        is_well = all(age < HUNG for age in ages.values()) and not is_renewed
        shown = {name: round(age) for name, age in ages.items()}
        told = {"seconds since": shown, "certificates renewed": is_renewed}
        return web.json_response(told, status=200 if is_well else 503)

    def _certificates(self) -> bytes | None:
        """None where there are none, or where they are gone for a moment."""
        try:
            return self._authority.read_bytes() if self._authority else None
        except OSError:
            return None

    async def _readyz(self, request: web.Request) -> web.Response:
        is_ready = self._is_ready()
        return web.Response(text="ok" if is_ready else "starting", status=200 if is_ready else 503)
