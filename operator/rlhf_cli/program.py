"""What this program is called: rlhfctl, or kubectl rlhf where kubectl has started it."""

from __future__ import annotations

import shlex
import sys
from pathlib import PurePath
from typing import Final

PACKAGE: Final = "rlhf-operator"
PLUGIN: Final = "kubectl-rlhf"


def program() -> str:
    """The words that a user types to start it."""
    return "kubectl rlhf" if PurePath(sys.argv[0]).name == PLUGIN else "rlhfctl"


def command(*words: str) -> str:
    """A command of this program, ready to be copied into a shell."""
    return f"{program()} {shlex.join(words)}"


def release() -> str:
    """The installed version; 0 for a checkout that was never installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "0"
