"""kopf's part: it watches the RLHFJobs. A table of contents without decisions.

kopf runs in a thread and an event loop of its own, because it takes every task of its loop that it
did not find there for its own, and ends it when it ends. It is started again if it ever does.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import kopf
from rlhf_api.job import GROUP, PLURAL, VERSION

from rlhf_operator.api import Object

log = logging.getLogger(__name__)

Take = Callable[[str | None, Object], None]
"""Told of an event: its type (None for what a list names) and the RLHFJob."""

RESTART_AFTER: Final = 5.0
STOPS_WITHIN: Final = 0.25
"""Seconds."""

IDENTITY: Final[Any] = "rlhf-operator"
"""kopf shows it to its peers, of which there are none. Left alone it asks for the name of the user,
who in a pod has none, and ends."""


class Unending:
    """Pauses between tries, in seconds, for as long as the API server is away.

    kopf's own come to an end, and then it exits.
    """

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.5, 1, 2, 4), itertools.repeat(8.0))


class NoComparison(kopf.DiffBaseStorage):
    """What an object was before does not matter. kopf's own storage copies it whole at each event,
    which takes a tenth of the operator's time."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Nothing of it counts."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        """Nothing was kept."""
        return None

    def store(self, **_: Any) -> None:
        """Nothing is kept."""


def registry(take: Take) -> kopf.OperatorRegistry:
    """The one handler. Level-based: nothing is left on the object, and no finalizer."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers, retries=None)
    def login(**given: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_via_client(**given)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def changed(event: kopf.RawEvent, **_: Any) -> None:
        take(event["type"], dict(event["object"]))

    return handlers


def settings() -> kopf.OperatorSettings:
    """No writes of kopf's own, no end on errors, no silence that goes unnoticed."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.scanning.disabled = True
    chosen.networking.error_backoffs = Unending()
    chosen.networking.request_timeout = 60
    chosen.networking.connect_timeout = 5
    chosen.watching.server_timeout = 300
    chosen.watching.connect_timeout = 5
    chosen.watching.inactivity_timeout = 75
    chosen.watching.reconnect_backoff = 0.5
    chosen.queueing.idle_timeout = 1.0
    chosen.persistence.diffbase_storage = NoComparison()
    return chosen


def watch_jobs(
    take: Take,
    namespaces: Sequence[str],
    stop: threading.Event,
    until_served: Callable[[], object] = lambda: None,
) -> None:
    """Blocks until `stop`. No namespace means all of them.

    `until_served` blocks until the API server serves the kind: kopf looks for it at its start
    alone, and would wait in vain for one that is made again after that.
    """
    while not stop.is_set():
        try:
            until_served()
            asyncio.run(_operate(take, namespaces, stop))
        except Exception as error:
            if not stop.is_set():
                said = (type(error).__name__, error)
                log.warning("kopf has ended (%s: %s); it is started again.", *said)
        stop.wait(RESTART_AFTER)


async def _operate(take: Take, namespaces: Sequence[str], stop: threading.Event) -> None:
    """One life of kopf. It is cancelled, and given no flag to wait for: where something else has
    ended it, its loop would wait for the thread that waits for a flag of threads, and nobody would
    hear of any job for ten minutes, after which kopf kills the process."""
    running = asyncio.create_task(
        kopf.operator(
            registry=registry(take),
            settings=settings(),
            identity=IDENTITY,
            clusterwide=not namespaces,
            namespaces=list(namespaces),
            standalone=True,
        )
    )
    while not (running.done() or stop.is_set()):
        await asyncio.wait({running}, timeout=STOPS_WITHIN)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
