"""kopf's part: it watches the RLHFJobs. A table of contents without decisions.

kopf runs in a thread and an event loop of its own, because it takes every task of its loop that it
did not find there for its own, and ends it when it ends. It is started again if it ever does.
"""

from __future__ import annotations

import asyncio
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


def watch_jobs(take: Take, namespaces: Sequence[str], stop: threading.Event) -> None:
    """Blocks until `stop`. No namespace means all of them."""
    while not stop.is_set():
        try:
            asyncio.run(
                kopf.operator(
                    registry=registry(take),
                    settings=settings(),
                    identity=IDENTITY,
                    clusterwide=not namespaces,
                    namespaces=list(namespaces),
                    standalone=True,
                    stop_flag=stop,
                )
            )
        except Exception as error:
            log.warning(
                "kopf has ended (%s: %s); it is started again.", type(error).__name__, error
            )
        stop.wait(RESTART_AFTER)
