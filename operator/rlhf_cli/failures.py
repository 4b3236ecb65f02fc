"""How rlhfctl ends when it cannot do what was asked."""

from __future__ import annotations

from typing import Final

DONE: Final = 0
USAGE: Final = 64
"""A wrong flag, a manifest that is refused, a file or a result that is not there."""
FAILED: Final = 1
"""A stage failed without saying how."""
UNAVAILABLE: Final = 69
"""There is no cluster, or it does not answer."""
IO_ERROR: Final = 74
"""The machine refused to read or write: disk full, no permission."""
TRANSIENT: Final = 75
"""What is asked for cannot be done yet; the same command may well succeed later."""
DENIED: Final = 77
"""The cluster does not allow it to this user."""
INTERRUPTED: Final = 130
TERMINATED: Final = 143
# Otherwise the exit code is that of the trainer whose stage failed: rlhf_api.run.ExitCode.


class Failure(Exception):
    """What went wrong, in lines for the user, and the exit code that says so to a program."""

    def __init__(self, *lines: str, exit_code: int = USAGE) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
        self.exit_code = exit_code
