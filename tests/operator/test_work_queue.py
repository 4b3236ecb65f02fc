"""The work queue: each job at most once, never in two hands, later after each failure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from rlhf_operator import replica as replicas
from rlhf_operator.cluster import KubernetesCluster
from rlhf_operator.names import JobKey
from rlhf_operator.queue import FIRST_BACKOFF, YIELDS, WorkQueue
from rlhf_operator.replica import Replica
from rlhf_operator.settings import Settings
from turned_clock import run_by_turned_clock

A, B = JobKey("team", "a"), JobKey("team", "b")


def run(test: Callable[[WorkQueue], Awaitable[None]]) -> None:
    async def main() -> None:
        await test(WorkQueue())

    run_by_turned_clock(main)


async def is_empty(queue: WorkQueue) -> bool:
    try:
        async with asyncio.timeout(0.02):
            await queue.take()
    except TimeoutError:
        return True
    return False


def test_what_is_added_twice_is_done_once() -> None:
    async def test(queue: WorkQueue) -> None:
        for key in (A, B, A):
            queue.add(key)
        assert [(await queue.take())[0] for _ in range(2)] == [A, B]
        assert await is_empty(queue)

    run(test)


def test_what_is_added_during_its_pass_is_done_again_afterwards() -> None:
    async def test(queue: WorkQueue) -> None:
        queue.add(A)
        await queue.take()
        queue.add(A)
        assert await is_empty(queue)
        queue.done(A)
        assert (await queue.take())[0] == A

    run(test)


def test_a_pass_that_failed_is_repeated_later_each_time() -> None:
    async def test(queue: WorkQueue) -> None:
        async def wait() -> float:
            began = loop.time()
            await queue.take()
            return loop.time() - began

        loop = asyncio.get_running_loop()
        queue.add(A)
        waits = []
        for _ in range(4):
            waits.append(await wait())
            queue.done(A, failed=True)
        assert waits == pytest.approx([0, FIRST_BACKOFF, 2 * FIRST_BACKOFF, 4 * FIRST_BACKOFF])
        await queue.take()
        queue.done(A)
        queue.add(A)
        await queue.take()
        queue.done(A, failed=True)
        assert await wait() == pytest.approx(FIRST_BACKOFF)  # a success has ended the row

    run(test)


def test_news_do_not_shorten_the_pause_after_a_failure() -> None:
    async def test(queue: WorkQueue) -> None:
        queue.add(A)
        await queue.take()
        queue.add(A)
        queue.done(A, failed=True)
        assert await is_empty(queue)
        assert (await queue.take())[0] == A

    run(test)


def test_a_job_that_had_a_pass_lets_others_go_first_for_a_while() -> None:
    async def test(queue: WorkQueue) -> None:
        queue.add(A)
        await queue.take()
        queue.done(A)
        for key in (A, B):
            queue.add(key)
        assert [(await queue.take())[0] for _ in range(2)] == [B, A]
        for key in (A, B):
            queue.done(key)
        queue.add(A)
        await asyncio.sleep(YIELDS + 1)
        queue.add(B)
        assert [(await queue.take())[0] for _ in range(2)] == [A, B]  # not put off for ever

    run(test)


def test_a_job_whose_pass_is_long_ago_has_its_turn() -> None:
    async def test(queue: WorkQueue) -> None:
        queue.add(A)
        await queue.take()
        queue.done(A)
        await asyncio.sleep(YIELDS + 1)
        for key in (A, B):
            queue.add(key)
        assert [(await queue.take())[0] for _ in range(2)] == [A, B]

    run(test)


def test_of_two_times_the_earlier_one_counts() -> None:
    async def test(queue: WorkQueue) -> None:
        queue.add_after(A, 0.05)
        queue.add_after(A, 60.0)
        assert (await queue.take())[0] == A
        queue.done(A)
        queue.add_after(A, 60.0)
        queue.add_after(A, 0.05)
        assert (await queue.take())[0] == A

    run(test)


def test_a_new_term_starts_with_an_empty_queue() -> None:
    async def test(queue: WorkQueue) -> None:
        queue.add(A)
        queue.add_after(B, 0.01)
        queue.clear()
        assert await is_empty(queue)
        assert len(queue) == 0

    run(test)


def test_jobs_queue_up_at_the_replica_that_leads_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that waits for months would keep the name of each job that there ever was."""

    async def stands_still(*_: Any) -> None:
        await asyncio.sleep(60)

    async def term() -> None:
        replica = Replica(Settings())
        queue = replica._queue
        replica._heard("ADDED", an_rlhfjob("old"))
        replica._heard("ADDED", an_rlhfjob("gone"))
        replica._heard("DELETED", an_rlhfjob("gone"))
        assert len(queue) == 0
        leading = asyncio.create_task(replica._work(cast(KubernetesCluster, None)))
        await asyncio.sleep(0)
        replica._heard("ADDED", an_rlhfjob("new"))
        assert len(queue) == 2
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
        replica._heard("ADDED", an_rlhfjob("later"))
        assert len(queue) == 0

    monkeypatch.setattr(replicas, "work", stands_still)
    asyncio.run(term())


def an_rlhfjob(name: str) -> dict[str, Any]:
    meta = {"name": name, "namespace": "team", "uid": name, "resourceVersion": "1"}
    return {"apiVersion": "rlhf.dev/v1alpha1", "kind": "RLHFJob", "metadata": meta}
