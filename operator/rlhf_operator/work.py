"""Passes over jobs, as they fall due: a few at a time, and never two over the same job."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import datetime
from typing import Final

from rlhf_operator.api import ApiError, NotLeading
from rlhf_operator.cluster import KubernetesCluster
from rlhf_operator.controller import (
    OutOfDate,
    StatusRefused,
    reconcile_once,
    say_broken_off,
)
from rlhf_operator.metrics import Metrics
from rlhf_operator.names import JobKey
from rlhf_operator.plan import BeginAttempt
from rlhf_operator.queue import WorkQueue
from rlhf_operator.watches import Restored

log = logging.getLogger(__name__)

WORKERS: Final = 16
"""Passes at one time. They mostly wait for the API server."""
NEWER_AGAIN: Final = 60.0
"""Seconds until a job whose resource is newer than this operator is looked at again."""
LOOK_AGAIN: Final = 1.0
"""Seconds until a pass over data that was out of date is repeated, if no event comes before."""


FAILED: Final = ("ApiError", "StatusRefused", "Bug")
"""What a pass may end with after which the next one is put off, longer each time."""


async def work(
    queue: WorkQueue, cluster: KubernetesCluster, metrics: Metrics, workers: int = WORKERS
) -> None:
    """Takes jobs from the queue until it is cancelled, or the lease was found to be lost."""
    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(_worker(queue, cluster, metrics))


async def _worker(queue: WorkQueue, cluster: KubernetesCluster, metrics: Metrics) -> None:
    while True:
        key, waited = await queue.take()
        metrics.waited(waited)
        began = time.monotonic()
        error = "Cancelled"
        try:
            error = await _pass(queue, cluster, key)
        finally:
            queue.done(key, failed=error in FAILED)
            metrics.reconciled(time.monotonic() - began, error or None)
        if error == "NotLeading":  # nor would any other job's pass be let write in this term
            return


async def _pass(queue: WorkQueue, cluster: KubernetesCluster, key: JobKey) -> str:
    """One word for what went wrong, empty where nothing did. Other jobs go on in any case."""
    now = cluster.now()
    try:
        done = await reconcile_once(cluster, key, now)
        if any(isinstance(action, BeginAttempt) for action in done.actions):
            # Its children, before others' turns.
            done = await reconcile_once(cluster, key, now, is_just_written=True)
        if done.resource_is_newer:  # it may be taken back, of which no event tells
            await cluster.reload(key)
            queue.add_after(key, NEWER_AGAIN)
    except OutOfDate as error:
        log.debug("%s/%s: %s", *key, error)
        queue.add_after(key, LOOK_AGAIN)
        return "OutOfDate"
    except NotLeading as error:
        log.warning("%s/%s: %s was not sent, the lease is not held", *key, error)
        return "NotLeading"
    except (ApiError, StatusRefused) as error:
        log.warning("%s/%s: %s", *key, error)
        return type(error).__name__
    except Restored:
        raise  # it ends the process
    except Exception as error:
        log.exception("%s/%s: the pass broke off; this is a mistake in the operator", *key)
        await _tell(cluster, key, error, now)
        return "Bug"
    for moment in (done.retry_at, cluster.next_look(key, now)):
        if moment is not None:
            queue.add_after(key, (moment - now).total_seconds())
    return ""


async def _tell(cluster: KubernetesCluster, key: JobKey, error: Exception, now: datetime) -> None:
    """In the job's conditions, so that nobody has to read logs to see that it does not go on."""
    try:
        await say_broken_off(cluster, key, error, now)
    except Exception as second:
        log.warning("%s/%s: nor could that be told: %s", *key, second)
