"""What a rename makes visible has to be on the disk before it.

Else a node that loses power leaves torn contents under a name that stands for whole ones.
"""

from __future__ import annotations

import os
from pathlib import Path


def sync_files(top: Path) -> None:
    """Have the contents of all files below a directory on the disk."""
    for path in sorted(top.rglob("*")):
        if path.is_file():
            sync(path)


def sync_directories(top: Path) -> None:
    """Have the names in a directory and in all below it on the disk."""
    for directory in [path for path in top.rglob("*") if path.is_dir()]:
        sync(directory)
    sync(top)


def sync(path: Path) -> None:
    """Have a file's contents, or the names in a directory, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
