"""Removing a run from this machine: only what a run has made, and no checkpoint unasked."""

from __future__ import annotations

import contextlib
import shutil
from typing import Final

from rlhf_operator.local.store import LOCK_FILE, is_in_use, owner_of

from rlhf_cli.failures import TRANSIENT, Failure
from rlhf_cli.run_folder import EVENTS_FILE, REPORT_FILE, STATUS_FILE, VERSIONS_FILE, RunFolder

FILES: Final = (REPORT_FILE, VERSIONS_FILE, EVENTS_FILE, STATUS_FILE, LOCK_FILE)


def delete(folder: RunFolder, with_checkpoints: bool) -> list[str]:
    """What was removed and what was kept. Raises Failure."""
    path = folder.path
    folder.document()  # there is a run, and not just any directory
    if is_in_use(path):
        raise Failure(
            f"process {owner_of(path)} works on {path}: end it first with cancel --dir {path}",
            exit_code=TRANSIENT,
        )
    shutil.rmtree(path / "pods", ignore_errors=True)
    if with_checkpoints:
        shutil.rmtree(path / "volumes")
    for name in FILES:
        (path / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # what is not a run's stays, and so does its directory
        path.rmdir()
    if with_checkpoints or not (path / "volumes").exists():
        return [f"The run in {path} is deleted, with its checkpoints."]
    return [f"The run in {path} is deleted.", f"Its checkpoints stay in {path / 'volumes'}."]
