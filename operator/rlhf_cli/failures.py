"""How rlhfctl ends: the exit codes in one table, and what it cannot do as one exception."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rlhf_api.problems import Problem

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 64
CHECKPOINT: Final = 65
DIVERGED: Final = 66
UNAVAILABLE: Final = 69
MISTAKE: Final = 70
IO_ERROR: Final = 74
TRANSIENT: Final = 75
DENIED: Final = 77
TIMED_OUT: Final = 124
INTERRUPTED: Final = 130
TERMINATED: Final = 143

EXIT_CODES: Final[dict[int, str]] = {
    DONE: "done",
    FAILED: "a stage failed without saying how; a check found something to mend",
    USAGE: "a wrong flag or manifest, or something that is not there",
    CHECKPOINT: "a checkpoint is unusable",
    DIVERGED: "training diverged",
    UNAVAILABLE: "no cluster answers",
    MISTAKE: "a mistake of rlhfctl itself, to be reported",
    IO_ERROR: "the disk refused",
    TRANSIENT: "not now, but it may pass: run again",
    DENIED: "the cluster does not allow it",
    TIMED_OUT: "what was waited for did not come within --timeout",
    INTERRUPTED: "stopped by Ctrl-C",
    TERMINATED: "stopped by SIGTERM",
}
"""Beside these: where a stage failed, its trainer's own exit code (rlhf_api.run.ExitCode)."""


class Failure(Exception):
    """What went wrong, in lines for the user, and the exit code that says so to a program."""

    def __init__(self, *lines: str, exit_code: int = USAGE) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
        self.exit_code = exit_code


class Unreadable(Failure):
    """An RLHFJob that is there, and of which this version can make nothing."""


def told_problems(problems: Sequence[Problem], most: int = 5) -> list[str]:
    """A line for each, and one for those that are too many."""
    more = len(problems) - most
    return [f"  {problem}" for problem in problems[:most]] + [f"  and {more} more"] * (more > 0)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does: trainers save first."""
