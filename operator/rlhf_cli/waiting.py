"""Waiting for something to come true, for as long as the user gives it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from rlhf_cli.failures import TIMED_OUT, Failure

T = TypeVar("T")
LOOK_EVERY: Final = 0.5


async def within(seconds: float | None, work: Coroutine[Any, Any, T], what: str) -> T:
    """The result of some work. Raises Failure where it takes too long."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise Failure(f"{what} did not come within {seconds:g} s", exit_code=TIMED_OUT) from None


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    """Looks until it is true."""
    while not await check():
        await asyncio.sleep(LOOK_EVERY)
