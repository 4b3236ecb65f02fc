"""After a pass, a job's events are gathered for a moment; other jobs go on."""

from __future__ import annotations

import asyncio

from rlhf_operator.names import JobKey
from rlhf_operator.queue import WorkQueue
from turned_clock import run_by_turned_clock

JOB, OTHER = JobKey("default", "tiny"), JobKey("default", "other")
REST = 0.2


async def taken(queue: WorkQueue, seconds: float) -> list[JobKey]:
    """Jobs that are handed out within that time; each pass ends at once."""
    found: list[JobKey] = []
    try:
        async with asyncio.timeout(seconds):
            while True:
                key, _ = await queue.take()
                found.append(key)
                queue.done(key)
    except TimeoutError:
        return found


def test_events_after_a_pass_make_one_pass_once_it_has_rested() -> None:
    async def run() -> None:
        queue = WorkQueue(REST)
        queue.add(JOB)
        assert await taken(queue, REST / 4) == [JOB]
        for _ in range(5):
            queue.add(JOB)
        queue.add(OTHER)
        assert await taken(queue, REST / 4) == [OTHER]
        assert await taken(queue, 2 * REST) == [JOB]
        assert await taken(queue, 2 * REST) == []

    run_by_turned_clock(run)


def test_the_first_event_after_a_rest_is_due_at_once() -> None:
    async def run() -> None:
        queue = WorkQueue(REST)
        queue.add(JOB)
        assert await taken(queue, 2 * REST) == [JOB]
        queue.add(JOB)
        assert await taken(queue, REST / 4) == [JOB]

    run_by_turned_clock(run)


def test_a_pass_that_failed_waits_longer_than_its_rest() -> None:
    async def run() -> None:
        queue = WorkQueue(REST)
        queue.add(JOB)
        await queue.take()
        queue.done(JOB, failed=True)
        assert await taken(queue, 2 * REST) == []  # half a second
        assert await taken(queue, 2 * REST) == [JOB]

    run_by_turned_clock(run)
