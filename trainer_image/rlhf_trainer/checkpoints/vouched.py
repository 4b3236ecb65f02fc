"""Whether a committed directory is what its manifest.json vouches for. What is read from it is
looked at before, as there are pickles among it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Set
from functools import partial
from pathlib import Path
from typing import Any, Final

from rlhf_api.run import MANIFEST, StageRun

from rlhf_trainer.checkpoints.disk import Sharing
from rlhf_trainer.errors import CheckpointUnusable
from rlhf_trainer.ranks import Ranks

FORMAT_VERSION: Final = 1
SEAL: Final = "seal"
"""SHA-256 of the rest of a training state's manifest, whose numbers nothing else vouches for: that
of an output has its digest in the status, and what starts from it is held to that."""


ALONE: Final = Sharing(0, 1)
"""A process that shares no work."""


def verify_inputs(run: StageRun, ranks: Ranks, sharing: Sharing) -> None:
    """Check what earlier stages of the job made. A collective: of a large model it takes minutes,
    so ranks that see the same disk share its files. Raises CheckpointUnusable, on every rank.
    """
    made = {item.path: item.digest for item in run.inputs.values() if item.digest is not None}
    for path, digest in made.items():
        directory = Path(path)
        seen = _as_it_is(directory, digest)
        ranks.on_each(partial(_verify_share, directory, digest, sharing))
        _verified.add(seen)


def _verify_share(directory: Path, digest: str, sharing: Sharing) -> None:
    if directory.is_dir():  # else whoever loads it says so
        verify(directory, digest, sharing)


def verify_once(directory: Path, digest: str) -> None:
    """`verify`, but for a directory that is as it was when this process last did: a stage loads a
    model several times. Not a collective."""
    seen = _as_it_is(directory, digest)
    if seen not in _verified:
        verify(directory, digest)
        _verified.add(seen)


_verified: Final[set[tuple[Path, str, tuple[object, ...]]]] = set()


def _as_it_is(directory: Path, digest: str) -> tuple[Path, str, tuple[object, ...]]:
    """Changes with any file in it, told as `make` tells it."""
    about = tuple((path, _inode(path)) for path in sorted(directory.rglob("*")))
    return directory.absolute(), digest, about


def _inode(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:  # a file server's own, that comes and goes
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def verify(directory: Path, digest: str | None = None, sharing: Sharing = ALONE) -> dict[str, Any]:
    """The manifest of a committed directory, every file checked against it, or this rank's share of
    them. Not a collective.

    `digest` is what another stage says the manifest's own SHA-256 is. Raises CheckpointUnusable
    with the reason: no manifest, a file missing, of another size or content, another digest.
    """
    manifest_file = directory / MANIFEST
    if digest is not None and manifest_file.is_file():
        found = f"sha256:{sha256_of(manifest_file)}"
        if found != digest:
            raise CheckpointUnusable(f"{manifest_file} has digest {found}, expected {digest}")
    return checked_manifest(directory, sharing)


def checked_manifest(directory: Path, sharing: Sharing) -> dict[str, Any]:
    """The manifest, this rank's share of the files checked."""
    try:
        manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        files = {name: (told["size"], told["sha256"]) for name, told in manifest["files"].items()}
        version = manifest["formatVersion"]
    except FileNotFoundError:
        raise CheckpointUnusable(f"{directory} has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointUnusable(f"{directory / MANIFEST} is damaged: {error}") from None
    if version != FORMAT_VERSION:
        raise CheckpointUnusable(f"{directory} has format {version}, this trainer reads 1")
    _refuse_unlisted(directory, files.keys())
    for index, name in enumerate(sorted(files)):
        if index % sharing.ranks == sharing.number:
            _check_file(directory / name, *files[name])
    return manifest


def _refuse_unlisted(directory: Path, listed: Set[str]) -> None:
    """A file that nobody vouches for would be read all the same: an adapter beside the weights, a
    chat template, a pickle. Hidden ones, such as a file server's own, nothing reads.
    """
    names = {path.relative_to(directory).as_posix() for path in directory.rglob("*")}
    for name in sorted(names - listed - {MANIFEST}):
        is_hidden = any(part.startswith(".") for part in name.split("/"))
        if not is_hidden and not (directory / name).is_dir():
            raise CheckpointUnusable(f"{directory / name} is not in the {MANIFEST}")


def _check_file(path: Path, expected_size: int, expected_sha256: str) -> None:
    try:
        size = path.stat().st_size
        if size != expected_size:
            raise CheckpointUnusable(f"{path} has {size} bytes, expected {expected_size}")
        if sha256_of(path) != expected_sha256:
            raise CheckpointUnusable(f"{path} is damaged: its SHA-256 is not the manifest's")
    except FileNotFoundError:
        raise CheckpointUnusable(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointUnusable(f"{path} cannot be read: {error}") from None


def seal_of(manifest: Mapping[str, Any]) -> str:
    """What the manifest's own seal ought to be."""
    rest = {name: value for name, value in manifest.items() if name != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
