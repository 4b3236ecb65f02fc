"""Processes that start at once: forked from one that has imported what they need.

A trainer takes six seconds of a core to import torch, transformers and DeepSpeed, rlhfctl and the
operator one. What a fork hides (imports, `python -m`) is tested where nothing is forked:
e2e/test_demo.py, trainer/test_launch.py, cli/test_exit_codes.py, docs/test_readme.py, charts.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from warm.image.forking import FORKED_FROM, asked_of, recv_line

IMAGE = Path(__file__).parent / "image"
"""On PYTHONPATH it stands in for the trainer: `python -m rlhf_trainer` asks for a fork of it."""
CLIENT = IMAGE / "forking.py"
TRAINER = ("warm.trainer",)
COMMANDS = ("warm.commands",)
_starting = threading.Lock()


def server(modules: Sequence[str]) -> Path:
    """The socket of a process that has imported these modules; it ends with this process."""
    with _starting:
        return _started(modules)


@cache
def _started(modules: Sequence[str]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "warm.server", str(folder / "socket"), *modules],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdin=subprocess.PIPE,  # its end is this process's
        stdout=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(process.wait)
    atexit.register(process.stdin.close)
    process.stdout.read(1)  # it listens
    return folder / "socket"


def trainers() -> dict[str, str]:
    """Variables with which `python -m rlhf_trainer` is a fork, in whatever process."""
    path = os.pathsep.join(filter(None, [str(IMAGE), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, FORKED_FROM: str(server(TRAINER))}


def command(*words: str) -> list[str]:
    """What to start in place of `python -m WORDS`, for rlhfctl and the operator."""
    return [sys.executable, "-IS", str(CLIENT), str(server(COMMANDS)), *words]


class Forked:
    """A fork that is known by its own number: it can be stopped, too. As subprocess.Popen."""

    def __init__(
        self, module: str, words: Sequence[str], environ: Mapping[str, str], output: int
    ) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(server(COMMANDS)))
        with open(os.devnull) as nothing:
            files = [nothing.fileno(), output, output]
            asked_of(self._socket, module, words, os.getcwd(), environ, files)
        self.pid: int = json.loads(recv_line(self._socket))
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative for a signal. Raises TimeoutError."""
        if self.returncode is None:
            self._socket.settimeout(timeout)
            self.returncode = json.loads(recv_line(self._socket))
            self._socket.close()
        assert self.returncode is not None
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code where it has ended."""
        try:
            return self.wait(0)
        except BlockingIOError:
            return None

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def is_running(self) -> bool:
        """Whether it is there."""
        return self.poll() is None

    def kill(self) -> None:
        """SIGKILL; returns when it is gone. Nothing happens where it has ended."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)
