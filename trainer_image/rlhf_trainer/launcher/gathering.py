"""Pods of a gang wait for one another, before torchrun's agent starts.

They may come far apart: a node is only being made, or still pulls the image. torchrun's own wait is
one call that no signal interrupts, so a gang that was told to end would hold its nodes until it is
killed. This one looks now and then, and can say whom it waits for.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, not exported

from rlhf_trainer.errors import GangIncomplete

WITHIN: Final = 3600.0
"""Seconds that pods wait for each other: an autoscaler's node with its drivers and a large image
takes up to forty minutes."""
LOOK_EVERY: Final = 1.0
TELL_EVERY: Final = 300.0
CONNECT_WITHIN: Final = 5.0
ANSWER_WITHIN: Final = timedelta(seconds=60)
"""Of pod 0, which is there; it may be cut off from the others."""
MISSING: Final = "gathering/missing"
"""Key under which pod 0 tells the others who has not come."""
LEAVES: Final = "gathering/leaves"

log = logging.getLogger("rlhf_trainer")


@contextmanager
def gathered(address: str, port: int, index: int, count: int) -> Iterator[None]:
    """Entered once all `count` pods are there, of which this is number `index`.

    GangIncomplete names those that did not come; torch.distributed.DistError where pod 0 went away.
    """
    if count == 1:
        yield
        return
    patience = _Patience(count)
    while index > 0 and not _listens(address, port):
        patience.wait("0")
    store = TCPStore(  # pod 0's serves the others, and the rendezvous after this
        address,
        port,
        is_master=index == 0,
        timeout=ANSWER_WITHIN,
        wait_for_workers=False,
        multi_tenant=True,
    )
    store.set(_key(index), "")
    while missing := _missing(store, index, count):
        patience.wait(missing)
    _leave_together(store, index, count)
    yield


def _listens(address: str, port: int) -> bool:
    """Whether pod 0 is there; before it has an address, its name means nothing."""
    try:
        socket.create_connection((address, port), CONNECT_WITHIN).close()
    except OSError:
        return False
    return True


def _missing(store: TCPStore, index: int, count: int) -> str:
    """Numbers of the pods that have not come; pod 0 looks, the others read what it saw."""
    if index > 0:
        return store.get(MISSING).decode()
    missing = in_spans(i for i in range(count) if not store.check([_key(i)]))
    store.set(MISSING, missing)
    return missing


def in_spans(numbers: Iterable[int]) -> str:
    """`0, 2-4` of 0, 2, 3 and 4: of a gang of hundreds nearly all may be missing."""
    spans: list[tuple[int, int]] = []
    for number in numbers:
        first = spans.pop()[0] if spans and spans[-1][1] == number - 1 else number
        spans.append((first, number))
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _leave_together(store: TCPStore, index: int, count: int) -> None:
    """Pod 0 stays until each other one knows that all are there: its end is that of the store."""
    if index > 0:
        store.set(f"{LEAVES}/{index}", "")
    else:
        store.wait([f"{LEAVES}/{i}" for i in range(1, count)], ANSWER_WITHIN)


def _key(index: int) -> str:
    return f"gathering/{index}"


class _Patience:
    """Waits, says for whom, and comes to an end."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._began = time.monotonic()
        self._tell_at = self._began

    def wait(self, missing: str) -> None:
        """A little longer. Raises GangIncomplete where it has been long enough."""
        now = time.monotonic()
        if now > self._began + WITHIN:
            raise GangIncomplete(
                f"of the gang's {self._count} pods, not all came within {WITHIN / 60:g} minutes; "
                f"missing: {missing}"
            )
        if now >= self._tell_at:
            log.info("Waiting for the other pods of the gang (of %d): %s", self._count, missing)
            self._tell_at = now + TELL_EVERY
        time.sleep(LOOK_EVERY)
