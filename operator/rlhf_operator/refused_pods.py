"""Why pods of a Job, or their ResourceClaims, are not made: a quota, a webhook, a PriorityClass,
an account or a template that is not there.

Their controllers say it in events alone. They are asked for where pods or claims are missing, and
not watched: of all that happens in a namespace they are most, and of a job that goes on none is
needed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from rlhf_operator.api import Api, ApiError, Object, Resource
from rlhf_operator.refused_changes import without_use

EVENTS: Final = Resource("events.k8s.io/v1", "Event", "events")
ASK_AGAIN: Final = 10.0
"""Seconds for which an answer holds: pods come one after the other, of many jobs at once."""
LOOK_AGAIN: Final = timedelta(minutes=1)
"""After which a job whose pods are missing is looked at again: no watch tells of another cause."""
MOST_JOBS: Final = 10_000
"""Of which it is remembered that pods are missing."""
OF_ONE_POD: Final = re.compile(
    r"^(?:\(combined from similar events\): )?(?:PodResourceClaim [^:]*: |Error creating: "
    r'(?:[Pp]ods? "[^"]*" is (?:forbidden|invalid): )?)'
)
NOT_MADE: Final = "FailedCreate"
UNCLAIMED: Final = "FailedResourceClaimCreation"
"""Reasons of events: of the Job controller about a Job, of the resource-claim controller about a
pod, which no scheduler looks at before its claims are there."""


class RefusedPods:
    """Asks once in a while, for all jobs of a namespace at a time: each question makes the API
    server read every event that there is."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._asked: dict[tuple[str, str], float] = {}  # by namespace and reason
        self._told: dict[tuple[str, str], dict[str, str]] = {}  # by these, and UID
        self._missing: dict[str, None] = {}  # UIDs of Jobs, oldest first

    async def why(self, job: Object) -> str:
        """What was said of the last pod that could not be made; empty where nothing was, or where
        this operator may not read events."""
        told = await self._of(job, NOT_MADE)
        return told.get(job["metadata"]["uid"], "")

    async def why_unclaimed(self, job: Object, pods: Iterable[Object]) -> str:
        """The same of the claims of a Job's pods, of which one stands for all."""
        told = await self._of(job, UNCLAIMED)
        said = (told.get(pod["metadata"]["uid"], "") for pod in pods)
        return next(filter(None, said), "")

    async def _of(self, job: Object, reason: str) -> dict[str, str]:
        """By UID."""
        meta, now = job["metadata"], time.monotonic()
        asked = (meta["namespace"], reason)
        while len(self._missing) >= MOST_JOBS:
            del self._missing[next(iter(self._missing))]
        self._missing[meta["uid"]] = None
        if now >= self._asked.get(asked, float("-inf")) + ASK_AGAIN:
            self._asked[asked] = now
            self._told[asked] = await self._ask(*asked)
        return self._told.get(asked, {})

    def forget(self, job: Object) -> None:
        """Its pods are all there, and a scheduler has looked at them."""
        self._missing.pop(job["metadata"]["uid"], None)

    def is_asked_for(self, jobs: Iterable[Object]) -> bool:
        """Whether pods of one of these were missing when it was last looked at."""
        return any(job["metadata"]["uid"] in self._missing for job in jobs)

    async def _ask(self, namespace: str, reason: str) -> dict[str, str]:
        try:
            found, _ = await self._api.list(EVENTS, namespace, fields=f"reason={reason}")
        except ApiError:
            return {}
        in_order = sorted(found, key=_last_time)
        return {e["regarding"].get("uid", ""): plain(e.get("note") or "") for e in in_order}


def plain(note: str) -> str:
    """The cause without the pod's name and without what changes by itself."""
    return without_use(OF_ONE_POD.sub("", note)).strip().rstrip(".")


def _last_time(event: Object) -> str:
    series = event.get("series") or {}
    times = (event.get("eventTime"), event.get("deprecatedLastTimestamp"))
    return str(series.get("lastObservedTime") or max(filter(None, times), default=""))
