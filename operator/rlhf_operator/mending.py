"""Puts back what somebody else has changed of a Service or a gang object that pods depend on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from rlhf_operator.api import Api, ApiError, Object, Resource
from rlhf_operator.names import ANNOTATION_APPLIED
from rlhf_operator.server_clock import Clock, own_clock
from rlhf_operator.times import doubled

log = logging.getLogger(__name__)

MEND_AGAIN: Final = timedelta(seconds=30)
"""How long to leave an object alone that was put back: somebody may insist."""
SELDOM: Final = timedelta(minutes=10)
"""For somebody who insists again and again, as a cluster's policy does: doubling up to that."""
EXACT: Final = ("selector",)
"""Maps that must have no further keys: a Service would find no pod."""


def applied(item: Object) -> dict[str, Any]:
    """The spec that the object was made with; empty where it does not say.

    Whoever may make an object with our label may write anything there, also brackets without end.
    """
    text = (item["metadata"].get("annotations") or {}).get(ANNOTATION_APPLIED)
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def drifted(item: Object) -> dict[str, Any]:
    """Fields of its spec, as they were applied, that are not so any more."""
    spec = item.get("spec") or {}
    return {
        name: value
        for name, value in applied(item).items()
        if not _agrees(name, value, spec.get(name))
    }


def _agrees(name: str, wanted: Any, found: Any) -> bool:
    """Whether all that was applied is there; what the API server filled in may stand beside it."""
    if isinstance(wanted, dict) and isinstance(found, dict) and name not in EXACT:
        return all(_agrees(key, value, found.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return all(_agrees("", *pair) for pair in zip(wanted, found, strict=True))
    return bool(wanted == found)


class Mended(NamedTuple):
    """When an object was last put back, and how many times that has been."""

    at: datetime
    times: int

    @property
    def next(self) -> datetime:
        """Before that it is left alone."""
        pause = doubled(MEND_AGAIN.total_seconds(), self.times, SELDOM.total_seconds())
        return self.at + timedelta(seconds=pause)


class Mender:
    """Mends through the API, each object once in a while."""

    def __init__(self, api: Api, clock: Clock = own_clock) -> None:
        self._api, self._clock = api, clock
        self._mended: dict[str, Mended] = {}  # by UID

    def is_due(self, item: Object, now: datetime) -> bool:
        """Whether it is to be put back now."""
        return bool(drifted(item)) and now >= self._next(item, now)

    def next_look(self, items: Iterable[Object], now: datetime) -> datetime | None:
        """When one that was changed again, soon after it was put back, is due once more."""
        if not self._mended:
            return None
        due = [self._next(item, now) for item in items if drifted(item)]
        return min((moment for moment in due if moment > now), default=None)

    def _next(self, item: Object, now: datetime) -> datetime:
        before = self._mended.get(item["metadata"]["uid"])
        return before.next if before else now

    async def mend(self, resource: Resource, item: Object) -> Object:
        """The object as it is then. Raises ApiError where the API server may take it later."""
        meta, wrong, now = item["metadata"], drifted(item), self._clock()
        old = {uid: of for uid, of in self._mended.items() if of.next + SELDOM > now}
        times = old[meta["uid"]].times + 1 if meta["uid"] in old else 1
        self._mended = old | {meta["uid"]: Mended(now, times)}
        said = (resource.kind, meta["namespace"], meta["name"], ", ".join(wrong))
        log.warning("%s %s/%s was changed by somebody else; put back: spec.%s", *said)
        operations = [{"op": "test", "path": "/metadata/uid", "value": meta["uid"]}]
        operations += [{"op": "add", "path": f"/spec/{n}", "value": v} for n, v in wrong.items()]
        try:
            return await self._api.json_patch(resource, meta["namespace"], meta["name"], operations)
        except ApiError as error:
            if error.is_passing:
                raise
            log.warning("%s %s/%s stays as it is: %s", *said[:3], error)
            return item
