"""Tells apart two states of local files without reading them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from rlhf_api.job import JobSpec
from rlhf_api.run import PREPARE

from rlhf_operator.render.config import refs_of
from rlhf_operator.render.volumes import place, scheme


def fingerprints(spec: JobSpec, volumes: Path, ignored: Path) -> dict[str, str]:
    """Fingerprint by address, of paths of this machine and of claims, which are folders here.

    Sizes and modification times: a touch costs a `prepare`, which reads the contents, and never a
    training. `ignored` is the run's own directory, which changes all the time.
    """
    found: dict[str, str] = {}
    for item in place(refs_of(spec, PREPARE)):
        kind = scheme(item.address)
        if kind == "":
            found[item.address] = _fingerprint(Path(os.path.expanduser(item.address)), ignored)
        elif kind == "pvc":
            found[item.address] = _fingerprint(volumes.parent / item.path, ignored=None)
    return found


def _fingerprint(path: Path, ignored: Path | None) -> str:
    if not path.exists():
        return "absent"
    lines = sorted(_entries(path, ignored.resolve() if ignored else None))
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _entries(path: Path, ignored: Path | None) -> Iterator[str]:
    """One line a file. Caches of Python and hidden files are no part of data or code."""
    if path.is_file():
        yield _line(path, path.name)
        return
    for folder, names, files in os.walk(path, followlinks=True):
        names[:] = [n for n in names if _counts(n) and Path(folder, n).resolve() != ignored]
        for name in filter(_counts, files):
            file = Path(folder, name)
            if file.is_file():
                yield _line(file, os.path.relpath(file, path))


def _line(file: Path, name: str) -> str:
    state = file.stat()
    return f"{name}\t{state.st_size}\t{state.st_mtime_ns}"


def _counts(name: str) -> bool:
    return not name.startswith(".") and name != "__pycache__"
