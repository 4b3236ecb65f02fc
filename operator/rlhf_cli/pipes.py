"""Output that nobody reads any more, as with `| head`."""

from __future__ import annotations

import contextlib
import os
from typing import IO, Any


def nobody_reads(stream: IO[Any]) -> None:
    """What is still to be written there goes nowhere: Python would try once more at its end."""
    with contextlib.suppress(OSError, ValueError):  # a stream that is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
