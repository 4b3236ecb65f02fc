"""What one object holds, however much of it, ends the watch of no other."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration
from rlhf_operator.api import Api
from rlhf_operator.watches import PODS

Object = dict[str, Any]


def event(kind: str, version: int, note: str = "") -> Object:
    meta = {"name": "p", "resourceVersion": str(version), "annotations": {"note": note}}
    return {"type": kind, "object": {"metadata": meta}}


async def watched(events: list[Object]) -> list[tuple[str, int]]:
    """Types and sizes of what a client sees of these, sent in small pieces."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        text = b"".join(json.dumps(item).encode() + b"\n" for item in events)
        for begin in range(0, len(text), 10_000):
            await response.write(text[begin : begin + 10_000])
        return response

    app = web.Application()
    app.router.add_get("/api/v1/pods", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    api = Api(ApiClient(Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")))
    try:
        found = api.watch(PODS, None, 1)
        return [(kind, len(item["metadata"]["annotations"]["note"])) async for kind, item in found]
    finally:
        await api.close()
        await runner.cleanup()


def test_an_event_of_any_size_is_read_as_any_other() -> None:
    events = [event("ADDED", 2, "x" * 6_000_000), event("BOOKMARK", 3), event("DELETED", 4, "yy")]
    assert asyncio.run(watched(events)) == [("ADDED", 6_000_000), ("BOOKMARK", 0), ("DELETED", 2)]
