"""Ranks look after each other: one that stands still ends the gang, and is named.

Whoever waits in a collective learns of a rank that has ended, as its connections close; not of one
that is stopped, or whose node is cut off: that is waited for as long as a collective may take, and
that is hours where rank 0 writes a large model. So each rank beats, in the store by which all have
met, and looks at the next one's beats, around the ring.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, Final

from torch.distributed import DistError

from rlhf_trainer.errors import RankSilent
from rlhf_trainer.termination import failure, write_termination_message

BEAT: Final = 10.0
"""Seconds between two beats, and between two looks."""
MOST_SILENT: Final = 60
"""Looks in a row that find no new beat. That is ten minutes: a library may let no other thread of
its process run for a while, as where it writes a large file."""
ANSWER_WITHIN: Final = timedelta(seconds=30)
"""Of the store, in pod 0. Who cannot ask it judges nobody."""
ENDED: Final = "ended"


class Heartbeat:
    """That of one rank, from when it is made until `stop`."""

    def __init__(self, store: Any, rank: int, ranks: int) -> None:
        """`store`: the torch.distributed.Store by which the ranks have met."""
        self._store = store.clone()  # of its own: another thread may wait in the other one
        self._store.set_timeout(ANSWER_WITHIN)
        self._rank, self._next = rank, (rank + 1) % ranks
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Nobody is to wait for this rank's beats any more."""
        self._is_over.set()
        self._thread.join(ANSWER_WITHIN.total_seconds())

    def _live(self) -> None:
        self._ask(lambda: self._store.set(f"{_key(self._rank)}/host", socket.gethostname()))
        seen, silent = None, 0
        for beat in itertools.count(1):
            if self._is_over.wait(BEAT):
                break
            found = self._ask(partial(self._look, beat))
            silent = silent + 1 if found == seen and found not in (None, "", ENDED) else 0
            seen = found
            if silent >= MOST_SILENT:
                _end_process(self._silent())
        self._ask(lambda: self._store.set(_key(self._rank), ENDED))

    def _look(self, beat: int) -> str:
        """Beats, and gives the next rank's beat; empty before its first one."""
        self._store.set(_key(self._rank), str(beat))
        there = self._store.check([_key(self._next)])
        return str(self._store.get(_key(self._next)).decode()) if there else ""

    def _silent(self) -> RankSilent:
        host = self._ask(lambda: self._store.get(f"{_key(self._next)}/host").decode())
        return RankSilent(
            f"rank {self._next} on {host or 'its node'} has shown no life for "
            f"{MOST_SILENT * BEAT:g} s: its process is stopped, or its node cut off"
        )

    def _ask(self, question: Callable[[], Any]) -> Any:
        """The answer; None where the store is gone, or does not answer."""
        try:
            return question()
        except DistError:
            return None


def _key(rank: int) -> str:
    return f"heartbeat/{rank}"


def _end_process(why: RankSilent) -> None:
    """At once: the other threads may wait for that rank for hours."""
    result = failure(why)
    write_termination_message(result)
    print(f"{result.reason}: {result.message}", flush=True)
    os._exit(result.exit_code)
