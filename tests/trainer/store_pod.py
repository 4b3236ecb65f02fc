"""Pods whose checkpoints are in an object store: a Secret, a stage file, a disk for each node."""

from __future__ import annotations

import shutil
from pathlib import Path

from rlhf_api.run import StageRun
from s3_server import Bucket, write_keys
from trainer_pod import Pod

STORE = "s3://bucket/team"


def write_secret(directory: Path, server: Bucket, key: str = "KEY") -> None:
    """The Secret `store`."""
    write_keys(directory / "secrets" / "store", server, key)


def on_store(run: StageRun, uri: str = STORE) -> StageRun:
    """The same attempt, with its checkpoints in the store."""
    return run.model_copy(update={"store": uri, "store_secret": "store"})


def second_node(pod: Pod) -> Path:
    """Another pod of the gang: the same stage file, data and Secret, a disk of its own."""
    directory = pod.directory / "node-1"
    for name in ("checkpoints", "termination", "tmp"):
        (directory / name).mkdir(parents=True)
    for name in ("config", "inputs", "secrets"):
        (directory / name).symlink_to(pod.directory / name)
    return directory


def empty_disk(directory: Path) -> None:
    """What a new pod finds."""
    shutil.rmtree(directory / "checkpoints")
    (directory / "checkpoints").mkdir()
