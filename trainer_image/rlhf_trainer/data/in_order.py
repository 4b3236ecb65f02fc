"""A function of many items, by several processes: what comes out is what one process would give.

Processes are started anew and import what the function needs (2 CPU seconds): one that is forked
would inherit the locks of threads that it doesn't have, and what a device's library has open. Each
has one chunk at a time, so that no more of the items lies in pipes, and reads from a pipe of its
own: it ends when this process does, however that was.
"""

from __future__ import annotations

import logging
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Final, Generic, NamedTuple, TypeVar

from rlhf_trainer.errors import Transient, first_line

CHUNK: Final = 128
"""Items that a process is given at once."""
WORTH_A_PROCESS: Final = 8192
"""Items of each process, at the least: SFT rows of seven seconds."""
MOST: Final = 8
"""Processes; this one hands rows out and takes them in, in a tenth of the time that they take."""
OUT_OF_MEMORY: Final = ": if that was for memory, raise resources.memory"
T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)


def in_order(function: Callable[[T], R], items: Sequence[T], cpus: int = 1) -> Iterator[R]:
    """`map`, on so many CPUs where there are items enough. Transient where a process is killed;
    raises what the function raises."""
    processes = min(cpus, MOST, len(items) // WORTH_A_PROCESS)
    pickled = _pickled(function) if processes > 1 else None
    return map(function, items) if pickled is None else _spread(pickled, items, processes)


def _pickled(function: Callable[..., Any]) -> bytes | None:
    try:
        return pickle.dumps(function)
    except Exception as error:  # tokenizers with code of their own raise whatever they like
        log.warning("one CPU alone is used: %s", first_line(error))
        return None


def _spread(function: bytes, items: Sequence[T], processes: int) -> Iterator[Any]:
    chunks = enumerate(items[at : at + CHUNK] for at in range(0, len(items), CHUNK))
    made: dict[int, list[Any]] = {}
    wanted = 0
    with ExitStack() as ends:
        idle = [ends.enter_context(_Worker[T](function)) for _ in range(processes)]
        busy: dict[_Worker[T], int] = {}  # and which chunk it has
        while True:
            for worker in idle:
                if (item := next(chunks, None)) is not None:
                    busy[worker], chunk = item
                    worker.give(chunk)
            while wanted in made:
                yield from made.pop(wanted)
                wanted += 1
            if not busy:
                return
            ready = wait([worker.connection for worker in busy])
            idle = [worker for worker in busy if worker.connection in ready]
            made |= {busy.pop(worker): worker.take() for worker in idle}


class _Outcome(NamedTuple):
    """What became of a chunk."""

    values: list[Any]
    error: Exception | None = None


class _Worker(Generic[T]):
    """A process that maps chunks, one after the other."""

    def __init__(self, function: bytes) -> None:
        context = get_context("spawn")
        self.connection, its_own = context.Pipe()
        self._process = context.Process(target=_work, args=(its_own, function), daemon=True)
        self._process.start()
        its_own.close()  # or the end of the process would not be seen

    def __enter__(self) -> _Worker[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self._process.terminate()
        self._process.join()

    def give(self, chunk: Sequence[T]) -> None:
        """Have it begin a chunk."""
        try:
            self.connection.send(chunk)
        except OSError:
            raise self._ended() from None

    def take(self) -> list[Any]:
        """What it made of its chunk; raises what the function raised."""
        try:
            outcome: _Outcome = self.connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if outcome.error is not None:
            raise outcome.error
        return outcome.values

    def _ended(self) -> Transient:
        self._process.join()
        code = self._process.exitcode or 0
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        hint = OUT_OF_MEMORY if -code == signal.SIGKILL else ""
        return Transient(f"a process that encoded rows ended with {how}{hint}")


def _work(connection: Connection, pickled: bytes) -> None:
    """Until nobody gives any more, or nobody takes."""
    function = pickle.loads(pickled)
    with suppress(EOFError, ConnectionError):
        while True:
            connection.send(_outcome(function, connection.recv()))


def _outcome(function: Callable[[Any], Any], chunk: Sequence[Any]) -> _Outcome:
    try:
        return _Outcome([function(item) for item in chunk])
    except Exception as error:
        error.add_note(traceback.format_exc())
        return _Outcome([], error)
