"""Reading a manifest: file, YAML, --set, validation; every refusal names file, line and field."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from rlhf_api.job import RLHFJob
from rlhf_api.problems import InvalidJob, Problem
from rlhf_api.validation import parse_job

from rlhf_cli.failures import Failure
from rlhf_cli.overrides import apply_overrides
from rlhf_cli.yaml_text import BadYaml, Position, read_document

STDIN: Final = "-"
MAX_BYTES: Final = 1 << 20
"""etcd refuses objects above 1.5 MiB; no manifest comes near."""


class Manifest(NamedTuple):
    """A decoded manifest and where it came from."""

    name: str  # as the user gave it
    folder: Path  # local paths in it are relative to this
    obj: Any
    positions: dict[str, Position]


class Located(NamedTuple):
    """A problem with the place of its field in the file, where there is one."""

    problem: Problem
    position: Position | None

    def text(self, name: str) -> str:
        """`file:line:column: path: what is wrong (what is allowed)`."""
        place = ":".join(map(str, (name, *(self.position or ()))))
        return f"{place}: {self.problem}"


class Refused(Failure):
    """A manifest with everything that is wrong with it."""

    def __init__(self, name: str, found: Sequence[Located]) -> None:
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        super().__init__(
            f"{name} is refused, {count}:", *(f"  {item.text(name)}" for item in found)
        )
        self.found = found


def read_manifest(name: str) -> Manifest:
    """Decode a file or standard input. Raises Failure."""
    text = _text(name)
    folder = Path.cwd() if name == STDIN else Path(name).absolute().parent
    try:
        document = read_document(text)
    except BadYaml as error:
        raise Refused(name, [Located(Problem("YAML", str(error)), error.position)]) from None
    return Manifest(name, folder, document.value, document.positions)


def read_job(name: str, overrides: Sequence[str] = ()) -> tuple[RLHFJob, Manifest]:
    """The valid job of a file, with overrides applied. Raises Failure."""
    manifest = read_manifest(name)
    manifest = manifest._replace(obj=apply_overrides(manifest.obj, overrides))
    try:
        job = parse_job(manifest.obj)
    except InvalidJob as error:
        raise Refused(name, locate(error.problems, manifest.positions)) from None
    return job.model_copy(update={"status": None}), manifest


def locate(problems: Sequence[Problem], positions: dict[str, Position]) -> list[Located]:
    """Each problem with its field's place; for a missing field, its nearest parent's."""
    return [Located(problem, _nearest(problem.path, positions)) for problem in problems]


def _nearest(path: str, positions: dict[str, Position]) -> Position | None:
    while path and path not in positions:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return positions.get(path)


def _text(name: str) -> str:
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1) if name == STDIN else _read(Path(name))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise Failure(f"cannot read {name}: {reason}") from None
    if len(data) > MAX_BYTES:
        raise Failure(f"{name} is larger than 1 MiB; that is no manifest")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Failure(
            f"{name}:{line}: is not UTF-8 text (byte 0x{data[error.start]:02x})"
        ) from None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)
