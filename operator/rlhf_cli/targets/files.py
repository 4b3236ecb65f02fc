"""Taking files from a reader's frames, and verifying a checkpoint by its manifest."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from rlhf_api.run import MANIFEST
from rlhf_api.status import CheckpointRef
from rlhf_operator.render.volumes import CHECKPOINTS

from rlhf_cli.failures import CHECKPOINT, TRANSIENT, Failure

LARGE: Final = 8 << 20
"""Bytes from which a file is worth a line."""


class Received:
    """Writes each file below a folder, under its whole path or what of it lies below `below`."""

    def __init__(
        self, folder: Path, below: str = "", tell: Callable[[str], None] = lambda text: None
    ) -> None:
        self.is_complete = False
        self.last = ""  # what was said that is no frame: an error of the reader
        self._folder, self._tell = folder, tell
        self._below = PurePosixPath(CHECKPOINTS, below)
        self._file: BinaryIO | None = None
        self._path = folder
        self._digest = hashlib.sha256()

    def take(self, line: str) -> None:
        """The next line of the log. Raises Failure where the stream has a gap."""
        kind, _, rest = line.partition(" ")
        match kind:
            case "file":
                size, _, name = rest.partition(" ")
                self._begin(json.loads(name), int(size))
            case "data":
                self._add(rest)
            case "end":
                self._end(rest)
            case "done":
                self.is_complete = self._file is None
            case _:
                self.last = line[-500:]

    def _begin(self, name: str, size: int) -> None:
        inside = PurePosixPath(name)
        if not inside.is_relative_to(self._below) or ".." in inside.parts:
            raise Failure(f"the reader names a file that was not asked for: {name}")
        self._path = self._folder / inside.relative_to(self._below)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if size >= LARGE:
            self._tell(f"{self._path} ({size / 1e6:,.0f} MB) …")
        self._file = self._draft.open("wb")
        self._digest = hashlib.sha256()

    @property
    def _draft(self) -> Path:
        return self._path.with_name(f".{self._path.name}.part")

    def _add(self, text: str) -> None:
        if self._file is None:
            raise _gap("data without a file")
        try:
            piece = zlib.decompress(base64.b64decode(text, validate=True))
        except (binascii.Error, zlib.error):
            raise _gap(str(self._path)) from None
        self._digest.update(piece)
        self._file.write(piece)

    def _end(self, digest: str) -> None:
        if self._file is None:
            raise _gap("an end without a file")
        self._file.close()
        self._file = None
        if self._digest.hexdigest() != digest:
            self._draft.unlink()
            raise _gap(str(self._path))
        self._draft.replace(self._path)


def _gap(where: str) -> Failure:
    return Failure(
        f"lines of the reader's log were lost on the way ({where}): its node rotated the log "
        "faster than it could be read",
        "run again; for a model of many GB, mount the claim in a pod of your own",
        exit_code=TRANSIENT,
    )


def verified(folder: Path, checkpoint: CheckpointRef) -> None:
    """Raises Failure unless the manifest is the status's, and every file what it says."""
    raw = (folder / MANIFEST).read_bytes()
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    if digest != checkpoint.digest:
        raise Failure(
            f"{folder / MANIFEST} has the digest {digest}, and the status says {checkpoint.digest}",
            exit_code=CHECKPOINT,
        )
    for name, told in json.loads(raw)["files"].items():
        file = folder / name
        if not file.is_file() or _digest(file) != told["sha256"]:
            raise Failure(
                f"{file} is not what the checkpoint's manifest says", exit_code=CHECKPOINT
            )


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
