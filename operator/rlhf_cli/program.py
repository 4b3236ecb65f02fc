"""What this program is called: rlhfctl, or kubectl rlhf where kubectl has started it."""

from __future__ import annotations

import shlex
import sys
from pathlib import PurePath
from typing import Final

PLUGIN: Final = "kubectl-rlhf"


def program() -> str:
    """The words that a user types to start it."""
    return "kubectl rlhf" if PurePath(sys.argv[0]).name == PLUGIN else "rlhfctl"


def command(*words: str) -> str:
    """A command of this program, ready to be copied into a shell."""
    return f"{program()} {shlex.join(words)}"
