"""When something is due without any event: ended attempts that expire, pauses that end, attempts of
which the cluster says nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from rlhf_api.job import RLHFJob
from rlhf_api.status import JobStatus, StageStatus

from rlhf_operator.observed import Attempt, Observed, numbered
from rlhf_operator.settle import GONE_AFTER, is_under_way
from rlhf_operator.times import read
from rlhf_operator.waiting import MOMENT


def expiry(job: RLHFJob, status: StageStatus, attempts: Sequence[Attempt]) -> datetime | None:
    """When the children of the newest attempt are to go; None where nothing is left, or nothing
    says so. `status` is the written one: an end that is not written down may still be needed."""
    seconds, ended = job.spec.ttl_seconds_after_finished, status.ended
    if seconds is None or ended is None or is_under_way(status):
        return None
    left = [a for a in attempts if a.number == ended.attempt and not a.is_terminating]
    if not any(attempt.has_ended for attempt in left):
        return None
    return read(ended.time) + timedelta(seconds=seconds)


def next_pass(job: RLHFJob, observed: Observed, status: JobStatus) -> datetime | None:
    """When the next pass is due even if nothing happens. `status`: the one just written."""
    stages = status.every_stage().items()
    times = [at for name, item in stages for at in _due(job, item, observed.of(name))]
    return min(times, default=None)


def _due(job: RLHFJob, status: StageStatus, attempts: Sequence[Attempt]) -> Iterator[datetime]:
    if status.reason == "BackingOff" and status.retry_time:
        yield read(status.retry_time)
    if status.missing_time:
        yield read(status.missing_time) + GONE_AFTER
    if is_under_way(status) and status.start_time is None:
        newest = numbered(attempts, status.attempt)
        if newest and newest.made_at:
            yield newest.made_at + MOMENT
    if due := expiry(job, status, attempts):
        yield due
