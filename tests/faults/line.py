"""The line between one operator and the API server, which can be cut, or carry nothing any more.

TLS passes through it unread; the rest of the cluster has lines of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

from cluster.loop_thread import LoopThread, end_other_tasks

BLOCK: Final = 1 << 16


class Line:
    """Open while it is entered as a context. Methods may be called from any thread."""

    def __init__(self, kubeconfig: Path) -> None:
        self._config = json.loads(kubeconfig.read_text())
        self._cluster = self._config["clusters"][0]["cluster"]
        self._to = urlsplit(self._cluster["server"])
        self._loop = LoopThread("line")
        self._port = 0  # any that is free, and from then on that one
        self._is_dead = False
        self._open: set[asyncio.StreamWriter] = set()
        self._dead: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Self:
        self._loop.start()
        self._loop.do(self._listen())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.stop(self._close())

    def write_kubeconfig(self, file: Path) -> None:
        """The way through here, as the user of the kubeconfig that was given."""
        self._cluster["server"] = f"https://{self._to.hostname}:{self._port}"
        file.touch(mode=0o600)
        file.write_text(json.dumps(self._config))

    def cut(self) -> None:
        """Connections end, and nobody takes new ones: the API server is gone."""
        self._loop.do(self._end())

    def die(self) -> None:
        """Connections stay, and are taken, and nothing is answered, now or ever: the machine has
        stopped, or whatever is between has forgotten them."""
        self._loop.do(self._silence())

    def mend(self) -> None:
        """New connections go through. Those that were open when it died stay silent."""
        self._loop.do(self._listen())

    async def _listen(self) -> None:
        self._is_dead = False
        if not self._port or not self._server.is_serving():
            self._server = await asyncio.start_server(self._pass, self._to.hostname, self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    async def _silence(self) -> None:
        self._is_dead = True
        self._dead |= self._open

    async def _end(self) -> None:
        self._server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _close(self) -> None:
        await self._end()
        await end_other_tasks()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._to.hostname, self._to.port)
        both = {writer, back}
        self._open |= both
        if self._is_dead:
            self._dead |= both
        ways = ((reader, back), (there, writer))
        pumps = [asyncio.ensure_future(self._pump(*way)) for way in ways]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._open -= both
            self._dead -= both
            for end in both:
                end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while block := await reader.read(BLOCK):
                if writer not in self._dead:
                    writer.write(block)
                    await writer.drain()
