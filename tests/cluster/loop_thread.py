"""An event loop in a thread of its own, for tests that are not asynchronous themselves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")
STOP_WITHIN: Final = 10.0


class LoopThread:
    """Runs from `start` to `stop`. Methods may be called from any other thread."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name=name)
        self.start = self._thread.start

    def do(self, work: Coroutine[Any, Any, T], within: float = 60) -> T:
        """What the work comes to. TimeoutError where it takes longer than so many seconds."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(within)

    def soon(self, call: Callable[..., object], *arguments: object) -> None:
        """Have the loop make the call; does not wait for it."""
        self._loop.call_soon_threadsafe(call, *arguments)

    def stop(self, closing: Coroutine[Any, Any, None]) -> None:
        """Let this be done, and end the thread."""
        self.do(closing)
        self.soon(self._loop.stop)
        self._thread.join(STOP_WITHIN)
        self._loop.close()


async def end_other_tasks() -> None:
    """Cancel all tasks of this loop but the one that calls, and wait until they have ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
