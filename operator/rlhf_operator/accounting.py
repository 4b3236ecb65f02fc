"""What an attempt's devices were used for: steps of its life as they are first seen, and the sum.

An attempt holds devices from when a pod of it is on a node. Until all have started they wait; then
they work, up to the end. What of that work counts depends on the end: `useful`.
"""

from __future__ import annotations

from datetime import datetime

from rlhf_api.status import GPUSeconds, StageStatus, Timeline

from rlhf_operator.observed import Attempt
from rlhf_operator.times import read, written


def on_timeline(status: StageStatus, attempt: Attempt, now: datetime) -> StageStatus:
    """The status with the steps that are seen for the first time.

    Where a queue has taken the devices back in mid-attempt, the time so far is summed up (pods that
    a queue ends have time to save) and the steps begin again.
    """
    known = status.timeline or Timeline()
    if attempt.is_suspended and not attempt.is_bound and known.bound:
        summed = summed_up(status, now, is_kept=True)
        return summed.model_copy(update={"timeline": None})
    at = written(now)
    seen = Timeline(
        bound=known.bound or (at if attempt.is_bound else None),
        scheduled=known.scheduled or (at if attempt.is_scheduled else None),
        running=known.running or (at if attempt.is_running else None),
        node_lost=None if attempt.all_run else known.node_lost or (at if attempt.is_lost else None),
    )
    return status if seen == known else status.model_copy(update={"timeline": seen})


def summed_up(status: StageStatus, until: datetime, *, is_kept: bool) -> StageStatus:
    """Adds the devices' time up to `until` to the sums.

    `is_kept`: all work counts; otherwise that up to the newest save.
    """
    steps = status.timeline
    if not status.gpus or steps is None or steps.bound is None:
        return status
    bound = read(steps.bound)
    started = read(steps.running) if steps.running else max(bound, until)
    end = max(started, until)
    kept = end if is_kept else _kept_until(status, started, end)
    sums = status.gpu_seconds or GPUSeconds()
    new = GPUSeconds(
        waiting=sums.waiting + status.gpus * _seconds(bound, started),
        useful=sums.useful + status.gpus * _seconds(started, kept),
        repeated=sums.repeated + status.gpus * _seconds(kept, end),
    )
    return status.model_copy(update={"gpu_seconds": new})


def _kept_until(status: StageStatus, started: datetime, end: datetime) -> datetime:
    saved = read(status.saved.time) if status.saved else started
    return min(max(saved, started), end)


def _seconds(start: datetime, end: datetime) -> int:
    return max(0, round((end - start).total_seconds()))
