"""Operator processes that start at once: forked from one that has imported everything.

Each is a process of its own, whose memory has seen no other, and which can be killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TESTS = Path(__file__).parents[1]
KUBECONFIG = "kubeconfig"
"""Relative to where a process runs: the client looks at the variable when it is imported."""


class Nursery:
    """Starts them while it is entered as a context, and kills those that are left at its end."""

    def __enter__(self) -> Self:
        path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.nursery"],
            env={**os.environ, "PYTHONPATH": path, "KUBECONFIG": KUBECONFIG},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started: list[Forked] = []
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for operator in self._started:
            operator.kill()
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)

    def start(self, *flags: str, directory: Path, log: Path, ahead: float = 0) -> Forked:
        """An operator with these flags and the kubeconfig in a directory; it adds to the log.

        `ahead`: seconds by which its clock is.
        """
        assert self._process.stdin
        assert self._process.stdout
        places = {"directory": str(directory), "log": str(log)}
        order = {"flags": flags, "ahead": ahead, **places}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        self._started.append(Forked(int(self._process.stdout.readline())))
        return self._started[-1]


class Forked:
    """One operator process."""

    def __init__(self, pid: int) -> None:
        self._pid: int | None = pid

    @property
    def is_running(self) -> bool:
        """Whether it is there, killed or not."""
        try:
            os.kill(self._pid or 0, 0)
        except ProcessLookupError:
            return False
        return self._pid is not None

    def kill(self) -> None:
        """SIGKILL; returns when it is gone. Nothing happens where it was killed before."""
        pid, self._pid = self._pid, None
        with contextlib.suppress(ProcessLookupError):
            while pid:
                os.kill(pid, signal.SIGKILL)
                time.sleep(0.001)


def _serve() -> None:
    """The parent of them all: an order on each line of stdin, a process number for it on stdout."""
    import rlhf_operator.main  # noqa: F401  what every child needs

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the ended are gone at once
    for line in sys.stdin:
        if pid := os.fork():
            print(pid, flush=True)
        else:
            os._exit(_operate(json.loads(line)))


def _operate(order: dict[str, Any]) -> int:
    from rlhf_operator.main import main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for standard, file in enumerate((nothing, log, log)):
        os.dup2(file, standard)
    os.chdir(order["directory"])
    if order["ahead"]:
        _set_clock(order["ahead"])
    return main(order["flags"])


def _set_clock(ahead: float) -> None:
    """Whatever this process reads from the wall clock is so many seconds ahead."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(seconds=ahead)

    read = time.time
    time.time = lambda: read() + ahead
    for name, module in list(sys.modules.items()):
        if name.startswith("rlhf_operator") and getattr(module, "datetime", None) is datetime:
            module.__dict__["datetime"] = Clock


if __name__ == "__main__":
    _serve()
