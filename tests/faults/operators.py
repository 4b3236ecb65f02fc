"""Operators whose clock may be wrong: `python -m faults.operators SECONDS FLAGS…` is one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Final, Self

import warm
from rlhf_operator.main import main

KUBECONFIG: Final = "kubeconfig"
"""Name of the file in an operator's directory."""


def start(*flags: str, directory: Path, log: Path, ahead: float = 0) -> warm.Forked:
    """An operator with these flags and the kubeconfig in a directory; it adds to the log.

    `ahead`: seconds by which its clock is.
    """
    environ = {**os.environ, "KUBECONFIG": str(directory / KUBECONFIG)}
    with log.open("a") as output:
        return warm.Forked("faults.operators", [str(ahead), *flags], environ, output.fileno())


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


def _operate(words: Sequence[str]) -> int:
    ahead, *flags = words
    if seconds := float(ahead):
        _set_clock(seconds)
    return main(flags)


if __name__ == "__main__":
    sys.exit(_operate(sys.argv[1:]))
