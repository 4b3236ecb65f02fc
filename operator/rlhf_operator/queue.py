"""Which jobs are due for a pass: each at most once in the queue, and never in two hands."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Final

from rlhf_operator.names import JobKey
from rlhf_operator.times import doubled

FIRST_BACKOFF: Final = 0.5
LAST_BACKOFF: Final = 60.0
"""Seconds to wait after a pass that failed: doubling, up to the ceiling."""
YIELDS: Final = 5.0
"""Seconds for which a job that had a pass lets others go first, and by which at most."""


class WorkQueue:
    """As client-go's: what is added while it is worked on is done again afterwards.

    `rest`: seconds after a pass for which its job gathers what happens; one pass then sees it all.
    Where passes cannot keep up, jobs that had none for a while come first: of many new jobs each is
    started before the first one's progress is looked at.
    """

    def __init__(self, rest: float = 0.0) -> None:
        self._rest = rest
        self._ready: asyncio.PriorityQueue[tuple[float, int, JobKey]] = asyncio.PriorityQueue()
        self._turns = itertools.count()
        self._lately: dict[JobKey, float] = {}  # when passes ended that are not long ago, in order
        self._queued: dict[JobKey, float] = {}  # since when
        self._running: set[JobKey] = set()
        self._resting: set[JobKey] = set()
        self._again: set[JobKey] = set()  # added while running, or resting
        self._timers: dict[JobKey, asyncio.TimerHandle] = {}
        self._failures: dict[JobKey, int] = {}

    def __len__(self) -> int:
        return len(self._queued)

    def add(self, key: JobKey) -> None:
        """Due now, or as soon as it may be."""
        if key in self._running or key in self._resting:
            self._again.add(key)
        elif key not in self._queued:
            now = self._queued[key] = time.monotonic()
            self._forget(now - YIELDS)
            rank = now + YIELDS if key in self._lately else now
            self._ready.put_nowait((rank, next(self._turns), key))

    def add_after(self, key: JobKey, seconds: float) -> None:
        """Due then; an earlier time that was set before stands."""
        loop = asyncio.get_running_loop()
        due = loop.time() + max(seconds, 0.0)
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= due:
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._ring, key)

    def _ring(self, key: JobKey) -> None:
        self._timers.pop(key, None)
        self.add(key)

    async def take(self) -> tuple[JobKey, float]:
        """The next job, and how many seconds it has waited. `done` has to follow."""
        _, _, key = await self._ready.get()
        waited = time.monotonic() - self._queued.pop(key)
        self._running.add(key)
        return key, waited

    def done(self, key: JobKey, *, failed: bool = False) -> None:
        """A pass has ended; after one that failed the next is put off, longer each time."""
        self._running.discard(key)
        self._lately.pop(key, None)
        self._lately[key] = time.monotonic()
        if failed:
            self._again.discard(key)
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            self.add_after(key, doubled(FIRST_BACKOFF, failures, LAST_BACKOFF))
            return
        self._failures.pop(key, None)
        if self._rest:
            self._resting.add(key)
            asyncio.get_running_loop().call_later(self._rest, self._rested, key)
        else:
            self._rested(key)

    def _forget(self, until: float) -> None:
        for key in list(itertools.takewhile(lambda of: self._lately[of] <= until, self._lately)):
            del self._lately[key]

    def _rested(self, key: JobKey) -> None:
        self._resting.discard(key)
        if key in self._again and key not in self._running:
            self._again.discard(key)
            self.add(key)

    def clear(self) -> None:
        """Forgets everything: somebody else may lead."""
        for timer in self._timers.values():
            timer.cancel()
        self.__init__(self._rest)  # type: ignore[misc]
