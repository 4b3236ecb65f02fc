"""The newest reports of running attempts, and when a pass is to look at them.

Trainers report every few seconds; a status is written for them at most every INTERVAL, and more
rarely where so many jobs report that the API server would have no rest. The first report of an
attempt and its last (100 %) are seen at once. What was seen last stands in the status, so a restart
of the operator loses nothing.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from rlhf_operator.names import JobKey
from rlhf_operator.observed import Progress
from rlhf_operator.progress import merged

INTERVAL: Final = 10.0
"""Seconds between two passes that reports of one job cause; the least."""
PASSES_PER_SECOND: Final = 20.0
"""Passes that the reports of all jobs cause; the most."""
REPORTING: Final = 60.0
"""Seconds after its last report for which a job counts as one of those that report."""


class ProgressBoard:
    """Takes reports, wakes passes. One event loop's own: no lock."""

    def __init__(
        self,
        wake: Callable[[JobKey, float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wake(key, after)` has a pass look at the job in `after` seconds."""
        self._wake, self._clock = wake, clock
        self._jobs: dict[JobKey, _JobReports] = {}
        self._last_report: OrderedDict[JobKey, float] = OrderedDict()  # oldest first

    def take(self, key: JobKey, stage: str, attempt: int, report: Progress) -> None:
        """Keeps a report, and wakes a pass where it says something new."""
        now = self._clock()
        self._last_report[key] = now
        self._last_report.move_to_end(key)
        wait = self._jobs.setdefault(key, _JobReports()).take(stage, attempt, report, now)
        if wait is not None:
            self._wake(key, wait)

    def of(self, key: JobKey) -> Mapping[tuple[str, int], Progress]:
        """What a pass sees, by stage and attempt: the same for INTERVAL, whatever woke it."""
        now, reports = self._clock(), self._jobs.get(key)
        return reports.publish(now, self._interval(now)) if reports else {}

    def _interval(self, now: float) -> float:
        while self._last_report and next(iter(self._last_report.values())) < now - REPORTING:
            self._last_report.popitem(last=False)
        return max(INTERVAL, len(self._last_report) / PASSES_PER_SECOND)

    def forget(self, key: JobKey) -> None:
        """The job is gone."""
        self._jobs.pop(key, None)
        self._last_report.pop(key, None)

    def clear(self) -> None:
        """Another replica has led in the meantime: what is here is old."""
        self._jobs.clear()
        self._last_report.clear()


class _Report(NamedTuple):
    attempt: int
    progress: Progress
    has_ended: bool = False  # 100 % was said


class _JobReports:
    """One job's reports: of each stage those of its newest attempt."""

    def __init__(self) -> None:
        self._newest: dict[str, _Report] = {}
        self._published: dict[str, _Report] = {}
        self._next_time = -math.inf  # when the next ones may be published
        self._wake_time = -math.inf  # when the pass that was asked for is due

    def take(self, stage: str, attempt: int, progress: Progress, now: float) -> float | None:
        """Seconds until a pass should look; None where there is no need, or one is due anyway."""
        before = self._newest.get(stage) or _Report(0, Progress())
        if attempt < before.attempt:
            return None  # from a pod that lags, of an attempt that is over
        is_first = attempt > before.attempt
        if is_first:
            before = _Report(attempt, Progress())
        has_ended = before.has_ended or progress.percent == 100
        self._newest[stage] = _Report(attempt, merged(before.progress, progress), has_ended)
        if is_first or has_ended != before.has_ended:
            self._next_time = now
        if self._newest == self._published or now < self._wake_time <= self._next_time:
            return None
        self._wake_time = max(self._next_time, now)
        return self._wake_time - now

    def publish(self, now: float, interval: float) -> Mapping[tuple[str, int], Progress]:
        """The reports to act on."""
        if now >= self._next_time and self._published != self._newest:
            self._published = dict(self._newest)
            self._next_time = now + interval
        return {(name, report.attempt): report.progress for name, report in self._published.items()}
