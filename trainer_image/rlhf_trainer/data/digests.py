"""What a source was when prepare saw it: its SHA-256, and the refusal of what changed since."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from rlhf_api.data import DataSource, ModelSource
from rlhf_api.run import StageRun
from rlhf_api.sources import SourceRef, named_sources, uris

from rlhf_trainer.errors import BadData, ConfigurationError


def sources_of(run: StageRun) -> Iterator[SourceRef]:
    """Every source that the stage file names, with its field in the spec."""
    yield from named_sources(run.model, "model")
    yield from named_sources(run.stages, "stages")
    if run.demonstrations is not None:
        yield from named_sources(run.demonstrations, "stages.sft")
    if run.evaluation is not None:
        yield from named_sources(run.evaluation, "evaluation")


def path_of(uri: str, paths: Mapping[str, str]) -> Path:
    """Where a source is mounted."""
    if uri not in paths:
        raise ConfigurationError(f"{uri}: the stage file names no path for this source")
    return Path(paths[uri])


def source_digest(ref: SourceRef, paths: Mapping[str, str]) -> str:
    """Digest of all that one field of the spec names, as ``sha256:<hex>``."""
    found = [path_digest(path_of(uri, paths)) for uri in uris(ref.value)]
    return found[0] if len(found) == 1 else _sha256("".join(found).encode())


def source_size(value: DataSource, paths: Mapping[str, str]) -> int:
    """Bytes of a data set's files."""
    found = (path_of(uri, paths) for uri in uris(value))
    files = (file for path in found for file in (path.rglob("*") if path.is_dir() else [path]))
    return sum(file.stat().st_size for file in files if file.is_file())


def path_digest(path: Path) -> str:
    """Of a file, the SHA-256 of its bytes; of a folder, that of its sorted (path, SHA-256) lines.

    Hidden files and compiled Python are no content and do not count.
    """
    try:
        if path.is_file():
            return _file_digest(path)
        files = sorted(
            (file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file()
        )
        lines = [f"{name} {_file_digest(file)}\n" for name, file in files if _counts(name)]
    except OSError as error:
        raise BadData(f"{path}: cannot be read: {error.strerror or error}") from None
    if not lines:
        raise BadData(f"{path}: there is no such file, or an empty folder")
    return _sha256("".join(lines).encode())


def refuse_changed_sources(run: StageRun) -> None:
    """Raise BadData where data or code of this stage are no longer what prepare checked.

    Models are vouched for by their own manifests and are not read twice.
    """
    for ref in sources_of(run):
        expected = run.sources.get(ref.field)
        if expected is None or isinstance(ref.value, ModelSource):
            continue
        found = source_digest(ref, run.paths)
        if found != expected:
            raise BadData(
                f"{' or '.join(uris(ref.value))} (spec.{ref.field}) changed since it was checked: "
                f"its digest is {found}, expected {expected}; submit the job anew to use it"
            )


def _counts(name: str) -> bool:
    return not any(part.startswith(".") or part == "__pycache__" for part in name.split("/"))


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
