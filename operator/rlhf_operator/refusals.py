"""What the API server has refused a moment ago: not asked again whenever something wakes the job.

A refusal is written to the status, and what is written wakes the job. Its words may differ each
time (a port, an address, a webhook's own numbers), and then that would never end.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, NamedTuple

from rlhf_api.job import RLHFJob

from rlhf_operator.api import ApiError, Object
from rlhf_operator.controller import REFUSED_AGAIN, Refused
from rlhf_operator.ownership import refusal
from rlhf_operator.server_clock import Clock, own_clock

HOLDS: Final = REFUSED_AGAIN * 0.75
"""For how long it stands: over by the time at which it is to be tried again."""
KNOWS_NOBODY: Final = timedelta(seconds=5)
"""For how long an API server that has just started may forbid whatever somebody has a right to: it
answers before it has read roles and bindings."""

Key = tuple[str, int, str, str, str]


class Told(NamedTuple):
    """What was said of a change."""

    first: datetime
    last: datetime
    error: Exception


class Refusals:
    """By the job as its user wrote it, and the child: an edit of the job is tried at once."""

    def __init__(self, clock: Clock = own_clock) -> None:
        self._clock = clock
        self._told: dict[Key, Told] = {}

    def recall(self, job: RLHFJob, item: Object, doing: str = "") -> None:
        """Raises what was said of this change, where that was a moment ago."""
        told = self._told.get(_key(job, item, doing))
        if told and isinstance(told.error, Refused) and self._is_fresh(told):
            raise told.error.with_traceback(None)

    def refusal(self, job: RLHFJob, item: Object, error: ApiError, doing: str = "") -> Exception:
        """What the error means, remembered where it is a refusal."""
        meant, key, now = refusal(error, item, doing), _key(job, item, doing), self._clock()
        if not isinstance(meant, Refused):
            return meant
        self._told = {of: told for of, told in self._told.items() if self._is_fresh(told)}
        first = self._told[key].first if key in self._told else now
        if meant.state.reason == "Forbidden" and now - first < KNOWS_NOBODY:
            meant = error
        self._told[key] = Told(first, now, meant)
        return meant

    def _is_fresh(self, told: Told) -> bool:
        return timedelta() <= self._clock() - told.last < HOLDS


def _key(job: RLHFJob, item: Object, doing: str) -> Key:
    meta = job.metadata
    return meta.uid, meta.generation, doing, item["kind"], item["metadata"]["name"]
