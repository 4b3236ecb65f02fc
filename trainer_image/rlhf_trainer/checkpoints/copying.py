"""`python -m rlhf_trainer copy`: what an object store keeps of a job, brought to a directory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from rlhf_trainer.checkpoints.store import ObjectStore
from rlhf_trainer.errors import TrainerError


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    options = argparse.ArgumentParser(prog="rlhf_trainer copy", allow_abbrev=False)
    options.add_argument("--secret", help="Secret with the credentials; default: the process's own")
    options.add_argument("uri", help="folder in the store: spec.checkpoints.uri")
    options.add_argument("directory", help="where the tree is laid out")
    options.add_argument("patterns", nargs="+", help="names below the folder, with *")
    return options


def main(arguments: Sequence[str]) -> int:
    """Copy files that fit and are not here yet; the exit code is that of a stage."""
    options = parser().parse_args(arguments)
    try:
        store = ObjectStore(options.uri, options.secret)
        store.give_up()  # somebody waits, and may try again
        for pattern in options.patterns:
            copy(store, Path(options.directory), pattern)
    except TrainerError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    return 0


def copy(store: ObjectStore, directory: Path, pattern: str) -> None:
    """Lay out below a directory what fits a pattern; a file of the same size stays."""
    folder = pattern.partition("*")[0].rpartition("/")[0]
    sizes = store.sizes(folder)
    store.bring({name: sizes[name] for name in sizes if fnmatchcase(name, pattern)}, directory)
