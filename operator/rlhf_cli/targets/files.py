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

BLOCK: Final = 1 << 20
Tell = Callable[[int, int], None]
"""Bytes that are here, and bytes in all."""


class Received:
    """Writes each file below a folder, under its whole path or what of it lies below `below`.

    What a cut has left there of a file is its beginning.
    """

    def __init__(self, folder: Path, below: str = "", tell: Tell = lambda here, total: None):
        self.is_complete = False
        self.last = ""  # what was said that is no frame: an error of the reader
        self.here = 0  # bytes
        self._folder, self._tell = folder, tell
        self._below = PurePosixPath(CHECKPOINTS, below)
        self._file: BinaryIO | None = None
        self._path = folder
        self._digest = hashlib.sha256()
        self._total = 0

    def have(self) -> dict[str, int]:
        """Bytes of each file that are here, by the name that the reader gives it."""
        self.close()
        found = [path for path in self._folder.rglob("*") if path.is_file()]
        return {
            str(self._below / path.relative_to(self._folder).as_posix()): path.stat().st_size
            for path in found
        }

    def take(self, line: str) -> None:
        """The next line of the log. Raises Failure where the stream has a gap."""
        kind, _, rest = line.partition(" ")
        match kind:
            case "total":
                self.here, self._total = 0, int(rest)
            case "file":
                _, offset, name = rest.split(" ", 2)
                self._begin(json.loads(name), int(offset))
            case "data":
                self._add(rest)
            case "end":
                self._end(rest)
            case "done":
                self.is_complete = self._file is None
            case _:
                self.last = line[-500:]

    def close(self) -> None:
        """What is here of a file that was under way stays."""
        if self._file:
            self._file.close()
            self._file = None

    def _begin(self, name: str, offset: int) -> None:
        inside = PurePosixPath(name)
        if not inside.is_relative_to(self._below) or ".." in inside.parts:
            raise Failure(f"the reader names a file that was not asked for: {name}")
        self.close()
        self._path = self._folder / inside.relative_to(self._below)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("r+b" if offset else "wb")
        self._digest = hashlib.sha256()
        while left := offset - self._file.tell():
            block = self._file.read(min(BLOCK, left))
            if not block:
                raise _gap(str(self._path))
            self._note(block)
        self._file.truncate()

    def _add(self, text: str) -> None:
        if self._file is None:
            raise _gap("data without a file")
        try:
            piece = zlib.decompress(base64.b64decode(text, validate=True))
        except (binascii.Error, zlib.error):
            raise self._spoilt() from None
        self._file.write(piece)
        self._note(piece)

    def _note(self, piece: bytes) -> None:
        self._digest.update(piece)
        self.here += len(piece)
        self._tell(self.here, self._total)

    def _end(self, digest: str) -> None:
        if self._file is None:
            raise _gap("an end without a file")
        if self._digest.hexdigest() != digest:
            raise self._spoilt()
        self.close()

    def _spoilt(self) -> Failure:
        """The file is not what it should be, so nothing can go on from it."""
        self.close()
        self._path.unlink()
        return _gap(str(self._path))


def _gap(where: str) -> Failure:
    return Failure(
        f"lines of the reader's log were lost on the way ({where}): its node rotated the log "
        "faster than it could be read",
        "run again; for a model of many GB, mount the claim in a pod of your own",
        exit_code=TRANSIENT,
    )


def verified(folder: Path, checkpoint: CheckpointRef) -> None:
    """Raises Failure unless the manifest is the status's, and every file what it says.

    Beside them there must be no other: whoever loads the model would read it all the same.
    """
    raw = (folder / MANIFEST).read_bytes()
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    if digest != checkpoint.digest:
        raise Failure(
            f"{folder / MANIFEST} has the digest {digest}, and the status says {checkpoint.digest}",
            exit_code=CHECKPOINT,
        )
    files = json.loads(raw)["files"]
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if more := sorted(here - files.keys() - {MANIFEST}):
        raise Failure(
            f"{more[0]} is not in the checkpoint's manifest: somebody put it there later",
            "remove it from the volume, or fetch another stage's with --stage",
            exit_code=CHECKPOINT,
        )
    for name, told in files.items():
        file = folder / name
        if not file.is_file() or _digest(file) != told["sha256"]:
            raise Failure(
                f"{name} is not what the checkpoint's manifest says: it was damaged on its volume",
                "fetch another stage's with --stage, or train this one again",
                exit_code=CHECKPOINT,
            )


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
