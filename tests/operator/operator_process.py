"""The operator as users run it: a process of its own, that can be killed, stopped and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import warm
from cluster.client import PATIENCE
from cluster.programs import free_ports


class OperatorProcess:
    """`python -m rlhf_operator` for some namespaces, or for all where none is named."""

    def __init__(
        self,
        kubeconfig: Path,
        namespaces: Sequence[str],
        log: Path,
        *flags: str,
        environment: Mapping[str, str] | None = None,
        is_forked: bool = True,
    ) -> None:
        """`is_forked`: it has its imports, and the memory that they take, from another process."""
        self._is_forked = is_forked
        (self.health_port,) = free_ports(1)
        self.log_file = log
        self._flags = [
            *(word for name in namespaces for word in ("--namespace", name)),
            *([] if namespaces else ["--all-namespaces"]),
            *("--health-port", str(self.health_port), "--log-level", "INFO", *flags),
        ]
        self._environment = {**os.environ, "KUBECONFIG": str(kubeconfig), **(environment or {})}

    def start(self) -> None:
        """Starts it, or starts it again."""
        with self.log_file.open("a") as log:
            self._process = self._started(log)

    def _started(self, log: TextIO) -> subprocess.Popen[bytes] | warm.Forked:
        if self._is_forked:
            return warm.Forked("rlhf_operator", self._flags, self._environment, log.fileno())
        command = [sys.executable, "-m", "rlhf_operator", *self._flags]
        return subprocess.Popen(
            command, env=self._environment, stdout=log, stderr=subprocess.STDOUT
        )

    def end(self) -> None:
        """Kills it, stopped or not, if it is there at all."""
        if self.is_running:
            self.signal(signal.SIGCONT)
            self.kill()

    def kill(self) -> None:
        """SIGKILL: nothing is released, nothing is finished."""
        self._process.kill()
        self._process.wait()

    def terminate(self) -> int:
        """SIGTERM, as a kubelet ends it; its exit code."""
        self._process.terminate()
        return self._process.wait(PATIENCE)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def log(self) -> str:
        """All that it has said so far, over all its lives."""
        return self.log_file.read_text(errors="replace")
