"""The ledger has no gap where the API server ends a watch."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import certifi
import yaml
from aiohttp import web

from faults.ledger import RESOURCES, Ledger


def pod(version: int) -> str:
    meta = {"name": "a", "namespace": "team", "resourceVersion": str(version)}
    return json.dumps({"type": "MODIFIED", "object": {"kind": "Pod", "metadata": meta}}) + "\n"


class Server:
    """Ends each watch of pods after two versions, the second of which it breaks off."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return web.json_response({"metadata": {"resourceVersion": "3"}, "items": []})
        response = web.StreamResponse()
        await response.prepare(request)
        if request.path != RESOURCES["Pod"]:
            await asyncio.sleep(60)
        since = int(request.query["resourceVersion"])
        self.asked.append(str(since))
        text = pod(since + 1) + pod(since + 2)[:20]
        await response.write(text.encode())
        return response

    async def run(self, folder: Path) -> list[int]:
        """The versions that a ledger knows after a while."""
        app = web.Application()
        app.router.add_get("/{path:.*}", self.serve)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        cluster = {"server": f"http://{host}:{port}", "certificate-authority": certifi.where()}
        kubeconfig = {
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "it", "user": {"token": "none"}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            "current-context": "it",
        }
        (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
        async with Ledger(folder / "kubeconfig") as ledger:
            await asyncio.wait_for(ledger.wait("team", lambda seen: len(seen) >= 3), 20)
            known = [entry.version for entry in ledger.history("team")]
        await runner.cleanup()
        return known


def test_a_watch_that_ends_is_gone_on_with(tmp_path: Path) -> None:
    server = Server()
    assert asyncio.run(server.run(tmp_path))[:3] == [4, 5, 6]
    assert server.asked[:3] == ["3", "4", "5"]
