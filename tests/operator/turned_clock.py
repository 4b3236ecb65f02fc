"""An event loop whose clock jumps to what is due next: pauses take no time, and are exact."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest


class _Jumping(selectors.DefaultSelector):
    """Where the loop would sleep until its next timer, the clock goes on by that much."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found and timeout is None:
            raise AssertionError("nothing is due any more, and somebody waits for ever")
        if not found:
            self.now += timeout or 0.0
        return found


class _Turned(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_by_turned_clock(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """As asyncio.run; the process's monotonic clock is the loop's meanwhile. For what waits for
    nothing but the clock and its own tasks."""
    with (
        pytest.MonkeyPatch.context() as patch,
        asyncio.Runner(loop_factory=_Turned) as runner,
    ):
        loop = runner.get_loop()
        patch.setattr(time, "monotonic", loop.time)
        runner.run(test())
