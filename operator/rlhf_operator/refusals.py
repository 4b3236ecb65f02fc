"""What the API server has refused a moment ago: not asked again whenever something wakes the job.

A refusal is written to the status, and what is written wakes the job. Its words may differ each
time (a port, an address, a webhook's own numbers), and then that would never end.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Final, NamedTuple, Self

from rlhf_api.job import RLHFJob

from rlhf_operator.api import ApiError, Object
from rlhf_operator.controller import REFUSED_AGAIN, Refused
from rlhf_operator.refused_changes import is_of_rights, lasting, refusal
from rlhf_operator.server_clock import Clock, own_clock

HOLDS: Final = REFUSED_AGAIN * 0.75
"""For how long it stands: over by the time at which it is to be tried again."""
KNOWS_NOBODY: Final = timedelta(seconds=5)
"""For how long an API server that has just started may forbid whatever somebody has a right to: it
answers before it has read roles and bindings."""

PATIENCE: Final = REFUSED_AGAIN
"""For how long what may pass by itself is told to nobody. An API server may break over one object
for ever, and answer all else."""
KNOWN_FOR: Final = 3 * REFUSED_AGAIN
"""For how long after it was said last it is known since when it is said."""

EVENT_LIVES: Final = timedelta(minutes=61)
"""After which an event that told of what lasts is gone (kube-apiserver, --event-ttl)."""


class Asked(NamedTuple):
    """An RLHFJob as its user wrote it: an edit of it is tried at once."""

    uid: str
    generation: int

    @classmethod
    def by(cls, job: RLHFJob) -> Self:
        """As it is read."""
        return cls(job.metadata.uid, job.metadata.generation)

    @classmethod
    def by_manifest(cls, manifest: Object) -> Self:
        """As the API server gives it, whether or not it can be read."""
        meta = manifest["metadata"]
        return cls(meta["uid"], meta.get("generation", 1))


Key = tuple[Asked, str, str, str]


class Told(NamedTuple):
    """What was said of a change; `sort` is the reason of its condition, empty for what passes."""

    first: datetime
    last: datetime
    sort: str
    error: Exception
    told: datetime | None = None  # to people, where that is not for each pass to do


class Refusals:
    """By the job as its user wrote it, and the object that was to be changed."""

    def __init__(self, clock: Clock = own_clock) -> None:
        self._clock = clock
        self._told: OrderedDict[Key, Told] = OrderedDict()  # by when it was said last

    def recall(self, asked: Asked, item: Object, doing: str = "") -> None:
        """Raises what was said of this change, where that was a moment ago."""
        told = self._told.get(_key(asked, item, doing))
        if told and isinstance(told.error, Refused) and self._is_within(HOLDS, told):
            raise told.error.with_traceback(None)

    def refusal(self, asked: Asked, item: Object, error: ApiError, doing: str = "") -> Exception:
        """What the error means, remembered."""
        self._forget_old()
        meant, key, now = refusal(error, item, doing), _key(asked, item, doing), self._clock()
        sort = meant.state.reason if isinstance(meant, Refused) else ""
        before = self._told.pop(key, None)
        same = before if before and before.sort == sort else None
        first = same.first if same else now
        if is_of_rights(error) and now - first < KNOWS_NOBODY:
            meant = error
        if not sort and now - first >= PATIENCE:
            meant = lasting(error, item, doing)
        self._told[key] = Told(first, now, sort, meant, same.told if same else None)
        return meant

    def is_news(self, asked: Asked, item: Object, doing: str = "") -> bool:
        """Whether people are to be told of what was said last; they are by whoever asks that."""
        key, now = _key(asked, item, doing), self._clock()
        known = self._told.get(key)
        if known is None or (known.told and timedelta() <= now - known.told < EVENT_LIVES):
            return False
        self._told[key] = known._replace(told=now)
        return True

    def forget(self, asked: Asked, item: Object, doing: str = "") -> None:
        """It was done."""
        self._told.pop(_key(asked, item, doing), None)

    def _forget_old(self) -> None:
        while self._told and not self._is_within(KNOWN_FOR, next(iter(self._told.values()))):
            self._told.popitem(last=False)

    def _is_within(self, span: timedelta, told: Told) -> bool:
        return timedelta() <= self._clock() - told.last < span


def _key(asked: Asked, item: Object, doing: str) -> Key:
    return asked, doing, item["kind"], item["metadata"]["name"]
