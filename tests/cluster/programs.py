"""Programs that run beside the tests and die with them, however they die."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

TAIL: Final = 15
"""Lines of its log that an error about a program shows."""


MEMORY_FOR_TIME: Final = {"GOGC": "300"}
"""A third of an API server's time was garbage collection: its heap is small, each write makes much.
What the environment says goes first."""


class ProgramError(Exception):
    """A program ended or did not become ready; shows the end of its log."""


class Group:
    """A process group that the system kills when the process that made it has gone.

    Its first process waits for the end of a pipe that only the maker holds: that end comes after
    SIGKILL too, and whichever thread started the programs.
    """

    def __init__(self) -> None:
        self._guard = subprocess.Popen(
            ["sh", "-c", "read _; kill -KILL 0"], stdin=subprocess.PIPE, process_group=0
        )
        self.id = self._guard.pid

    def close(self) -> None:
        """Kills all that is in the group."""
        assert self._guard.stdin
        self._guard.stdin.close()
        self._guard.wait()


class Program:
    """One program with its log; can be stopped and started again."""

    def __init__(self, group: Group, log: Path, command: list[str]) -> None:
        self.name = Path(command[0]).name
        self.log = log
        self._group = group
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=self._group.id,
                env={**MEMORY_FOR_TIME, **os.environ},
            )

    def stop(self, *, grace: float = 10) -> None:
        """Ends it: SIGTERM, and SIGKILL after the grace period (0: at once)."""
        if self._process is None:
            return
        if grace:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)
        self._process.kill()
        self._process.wait()
        self._process = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def wait_until(self, ready: Callable[[], bool], timeout: float) -> None:
        """Raises ProgramError where the program ends first, or is not ready in time."""
        deadline = time.monotonic() + timeout
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise ProgramError(
                    f"{self.name} is not ready after {timeout:g} s{self._end_of_log()}"
                )
            time.sleep(0.05)

    def check(self) -> None:
        """Raises ProgramError where the program has ended by itself."""
        if self._process and (code := self._process.poll()) is not None:
            raise ProgramError(f"{self.name} ended with exit code {code}{self._end_of_log()}")

    def _end_of_log(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL:]
        return f"; the end of {self.log}:\n  " + "\n  ".join(lines)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nothing listens on, and that nobody else is given.

    Programs listen on them only later: the system would have given ports of its own choice to the
    next connection.
    """
    return list(itertools.islice(filter(_is_free, _ports), count))


def _ports_of_this_worker() -> Iterator[int]:
    """Below those that the system gives away; each again only after all others."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    own = range(20_000, 30_000)[worker % 5 :: 5]
    return itertools.cycle(random.SystemRandom().sample(own, len(own)))


_ports = _ports_of_this_worker()


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
