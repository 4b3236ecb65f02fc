"""Ending the process that works on the directory of a run."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Final

from rlhf_operator.local.store import is_in_use, owner_of

from rlhf_cli.failures import DENIED, TRANSIENT, Failure

PATIENCE: Final = 150.0
"""Seconds: what trainers have to save in, and some."""


def ask_to_stop(directory: Path) -> None:
    """SIGTERM to the run: it ends as with Ctrl-C. Raises Failure."""
    owner = owner_of(directory)
    if owner is None:
        return
    try:
        os.kill(owner, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError:
        raise Failure(
            f"process {owner} works on {directory}, and belongs to another user", exit_code=DENIED
        ) from None


async def stopped(directory: Path) -> None:
    """Returns once nobody works on the directory. Raises Failure where it takes too long."""
    until = time.monotonic() + PATIENCE
    while is_in_use(directory):
        if time.monotonic() > until:
            raise Failure(
                f"process {owner_of(directory)} still saves after {PATIENCE:.0f} s; look again "
                "later, or end it without saving: cancel --now",
                exit_code=TRANSIENT,
            )
        await asyncio.sleep(0.1)
