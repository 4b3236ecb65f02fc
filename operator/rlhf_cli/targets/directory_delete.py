"""Removing a run from this machine: only what a run has made, and no checkpoint unasked."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Final

from rlhf_api.job import RLHFJob
from rlhf_operator.local.store import LOCK_FILE, is_in_use, owner_of
from rlhf_operator.names import claim_name

from rlhf_cli.failures import IO_ERROR, TRANSIENT, Failure
from rlhf_cli.program import command
from rlhf_cli.run_folder import (
    COPIES,
    EVENTS_FILE,
    REPORT_FILE,
    STATUS_FILE,
    VERSIONS_FILE,
    RunFolder,
)
from rlhf_cli.targets.storage import refuse_storage_of_others

FILES: Final = (REPORT_FILE, VERSIONS_FILE, EVENTS_FILE, STATUS_FILE, LOCK_FILE)


def delete(folder: RunFolder, job: RLHFJob | None, with_checkpoints: bool) -> list[str]:
    """What was removed and what was kept. Raises Failure.

    Volumes that stand for other claims hold somebody's data, and stay; all do without a job, which
    is the case where the status cannot be read.
    """
    path, place = folder.path, ["--dir", str(folder.path)]
    if is_in_use(path):
        raise Failure(
            f"process {owner_of(path)} works on {path}",
            f"stop it first, so that it saves: {command('cancel', *place)}",
            f"or end it as it is: {command('delete', *place, '--force')}",
            exit_code=TRANSIENT,
        )
    checkpoints = path / "volumes" / claim_name(job) if job else None
    _remove(path / COPIES)
    if job and checkpoints and with_checkpoints:
        refuse_storage_of_others(job)
        _remove(checkpoints)
    _remove(path / "pods")
    for name in FILES:
        (path / name).unlink(missing_ok=True)
    others = [item for item in sorted((path / "volumes").glob("*")) if item != checkpoints]
    for left in (path / "volumes", path):  # what is not a run's stays, and so does its directory
        with contextlib.suppress(OSError):
            left.rmdir()
    told = [f"The run in {path} is deleted{', with its checkpoints' * with_checkpoints}."]
    uri = job.spec.checkpoints.uri if job else None
    kept = uri or (checkpoints if checkpoints and checkpoints.is_dir() else None)
    told += [f"Its checkpoints stay in {kept}."] if kept else []
    why = "it is not the run's own" if job else "nothing tells whose it is"
    return told + [f"{item} stays: {why}." for item in others]


def _remove(tree: Path) -> None:
    """A tree, but nothing that links lead to. Raises Failure."""
    if tree.is_symlink():
        raise Failure(
            f"{tree} is a link: what it leads to is not deleted",
            f"remove {tree.resolve()} yourself, and the link, then run again",
        )
    if tree.exists():
        try:
            shutil.rmtree(tree)
        except OSError as error:  # its file name is that inside some folder of the tree
            raise Failure(
                f"{tree} cannot be removed: {error.filename}: {error.strerror}",
                "once that is mended, the same command goes on",
                exit_code=IO_ERROR,
            ) from None
