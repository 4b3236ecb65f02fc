"""Why pods of a Job are not made: a quota, a webhook, a PriorityClass or account that is not there.

The Job controller says it in events alone. They are asked for where pods are missing, and not
watched: of all that happens in a namespace they are most, and of a job that goes on none is needed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from rlhf_operator.api import Api, ApiError, Object, Resource

EVENTS: Final = Resource("events.k8s.io/v1", "Event", "events")
ASK_AGAIN: Final = 5.0
"""Seconds for which an answer holds, as pods of a large gang come one after the other."""
LOOK_AGAIN: Final = timedelta(minutes=1)
"""After which pods are to be asked for again that were refused: no watch tells of another cause."""
MOST_JOBS: Final = 1000
"""Of which answers are remembered."""
OF_ONE_POD: Final = re.compile(
    r'^(?:\(combined from similar events\): )?Error creating: (?:pods? "[^"]*" is forbidden: )?'
)
USED: Final = re.compile(r", used: .*?(?=, limited: )")
"""What others use at that moment, which would have the status written again and again."""


class RefusedPods:
    """Asks, each Job's once in a while."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._told: dict[str, tuple[float, str]] = {}  # by UID

    async def why(self, job: Object) -> str:
        """What was said of the last pod that could not be made; empty where nothing was, or where
        this operator may not read events."""
        meta, now = job["metadata"], time.monotonic()
        at, text = self._told.get(meta["uid"], (float("-inf"), ""))
        if now - at < ASK_AGAIN:
            return text
        while len(self._told) >= MOST_JOBS:
            del self._told[next(iter(self._told))]
        text = await self._ask(meta)
        self._told[meta["uid"]] = (now, text)
        return text

    def forget(self, job: Object) -> None:
        """Its pods are all there."""
        self._told.pop(job["metadata"]["uid"], None)

    def is_told_of(self, jobs: Iterable[Object]) -> bool:
        """Whether pods of one of these are known to be refused."""
        return any(self._told.get(job["metadata"]["uid"], (0.0, ""))[1] for job in jobs)

    async def _ask(self, meta: Object) -> str:
        fields = f"reason=FailedCreate,regarding.uid={meta['uid']}"
        try:
            found, _ = await self._api.list(EVENTS, meta["namespace"], fields=fields)
        except ApiError:
            return ""
        last = max(found, key=_last_time, default=None)
        return plain(last.get("note") or "") if last else ""


def plain(note: str) -> str:
    """The cause without the pod's name and without what changes by itself."""
    return USED.sub("", OF_ONE_POD.sub("", note)).strip().rstrip(".")


def _last_time(event: Object) -> str:
    series = event.get("series") or {}
    times = (event.get("eventTime"), event.get("deprecatedLastTimestamp"))
    return str(series.get("lastObservedTime") or max(filter(None, times), default=""))
