"""Encoded rows, kept in a file: one process reads and encodes a data set, and all others, of all
attempts, read what it made.

A file is the SHA-256 of the rest in hex and a newline; the records of all rows (`records.py`),
those to train on first; where each record begins, 8 bytes each; the rest as JSON, with the key of
all that decides what the rows are; and the length of that in 8 bytes. It is read by `pread`: ranks
of a node share its pages as they would a mapping's, but where a file server takes a mapped file
away, a process is killed without a word.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from importlib.metadata import version
from io import BufferedReader
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from rlhf_api.run import StageRun

from rlhf_trainer.data.digests import path_digest, source_size
from rlhf_trainer.data.each import Each
from rlhf_trainer.data.load import Loaded
from rlhf_trainer.data.problems import BadRow
from rlhf_trainer.data.records import from_record, to_record
from rlhf_trainer.data.stage_rows import Recipe
from rlhf_trainer.data.together import on_all_cpus
from rlhf_trainer.durable import sync
from rlhf_trainer.errors import Transient

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

E = TypeVar("E")
SEAL: Final = 65
"""Bytes of the SHA-256 and its newline."""
LENGTH: Final = struct.Struct("<q")
ROOM: Final = 10
"""A file is written where the disk has so many times its size free: checkpoints go first."""
LIBRARIES: Final = ("transformers", "tokenizers", "jinja2", "pyarrow")
"""Whose versions can make other rows of the same files."""
HOW_LOADED: Final = ("is_local", "local_files_only", "name_or_path")
"""What a tokenizer's own configuration tells of the way by which it came."""
log = logging.getLogger(__name__)


def place_of(run: StageRun, field: str) -> Path:
    """Where a job keeps the rows of a data set, one for each field of its spec."""
    return Path(run.lineage).parent / "rows" / field / "encoded"


def key_of(
    recipe: Recipe[Any], data: str | None, tokenizer: PreTrainedTokenizerBase, seed: int
) -> str | None:
    """SHA-256 of all that decides what rows are; `data` is the digest of their files. None where
    that cannot be told."""
    if data is None:
        return None
    try:
        loaded_from = _digest_of(tokenizer)
    except Exception as error:  # tokenizers with code of their own raise whatever they like
        log.warning("rows are not kept: the tokenizer cannot be written: %s", error)
        return None
    code = path_digest(Path(__file__).parent)
    versions = {name: version(name) for name in LIBRARIES} | {"python": sys.version}
    parts = [recipe.text, data, seed, loaded_from, code, versions, sys.byteorder]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@lru_cache(maxsize=4)
def _digest_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of all that decides its tokens and its template's text: the files that it would be
    loaded from again, but for how it was: stages are offline, and `prepare` is not."""
    with TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        file = Path(directory, "tokenizer_config.json")
        config = json.loads(file.read_text("utf-8"))
        rest = {name: value for name, value in config.items() if name not in HOW_LOADED}
        file.write_text(json.dumps(rest, sort_keys=True), "utf-8")
        return path_digest(Path(directory))


class _About(NamedTuple):
    """What a file holds beside rows."""

    key: str
    kind: str
    train: int  # rows
    heldout: int
    skipped: list[list[Any]]
    unread: list[str]
    warnings: list[str]


class Kept(Generic[E]):
    """The place of a data set's rows."""

    def __init__(
        self,
        path: Path,
        key: str | None,
        read: Callable[[], Loaded[E]],
        size: Callable[[], int],
    ) -> None:
        """`key` changes with anything that would make other rows; None: nothing is kept. `read`
        reads and encodes them. `size`: bytes of the data, as encoded rows take about as many."""
        self.path, self.key, self._read, self._size = path, key, read, size
        self._rows: Loaded[E] | None = None

    @classmethod
    def of(
        cls,
        run: StageRun,
        field: str,
        recipe: Recipe[E],
        tokenizer: PreTrainedTokenizerBase,
        key: str | None,
    ) -> Kept[E]:
        """Those of a field of the job's spec; for the key, see `key_of`."""
        read = partial(recipe.rows, tokenizer, run.paths, run.seed)
        return cls(place_of(run, field), key, read, partial(source_size, recipe.source, run.paths))

    def fill(self) -> bool:
        """Have the rows in the file, unless it holds them, by reading and encoding them on all
        CPUs; whether it was written.

        Where the file cannot be written, a line in the log says so, and no more. Raises what `read`
        raises.
        """
        if self.key is None or self._found() is not None or not self._has_room():
            return False
        with on_all_cpus():
            self._rows = rows = self._read()
        try:
            _write(self.path, self.key, rows)
        except (OSError, ValueError) as error:
            log.warning("rows are not kept in %s: %s", self.path, error)
            return False
        self._rows = None  # from now on the file's
        return True

    def rows(self) -> Loaded[E]:
        """The rows in the file; where it does not hold them, they are read and encoded, on one CPU:
        all ranks do so at once."""
        return self._found() or self._read()

    def _found(self) -> Loaded[E] | None:
        if self._rows is None and self.key is not None:
            try:
                self._rows = _read(self.path, self.key)
            except FileNotFoundError:
                return None
            except (OSError, ValueError, TypeError, EOFError, struct.error) as error:
                log.warning("%s is passed over: %s", self.path, error)
        return self._rows

    def _has_room(self) -> bool:
        """Whether it can be written, before others wait for it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft = _draft_of(self.path)
            draft.touch()
            draft.unlink()
            return shutil.disk_usage(self.path.parent).free > ROOM * self._size()
        except OSError:
            return False


def _draft_of(path: Path) -> Path:
    return path.with_name(f".tmp-{path.name}")


def _write(path: Path, key: str, rows: Loaded[Any]) -> None:
    """All of it, or nothing that has the file's name."""
    draft = _draft_of(path)
    try:
        with draft.open("w+b") as file:
            file.write(b"0" * SEAL)
            for part in _parts(key, rows):
                file.write(part)
            file.seek(SEAL)
            seal = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            file.write(f"{seal}\n".encode())
        sync(draft)
        draft.replace(path)
        sync(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _parts(key: str, rows: Loaded[Any]) -> Iterator[bytes]:
    begins = array("q", [SEAL])
    for row in chain(rows.train, rows.heldout):
        record = to_record(row)
        begins.append(begins[-1] + len(record))
        yield record
    yield begins.tobytes()
    kind = type(rows.train[0]).__name__
    skipped = [list(row) for row in rows.skipped]
    counts = len(rows.train), len(rows.heldout)
    told = list(rows.unread), list(rows.warnings)
    about = json.dumps(_About(key, kind, *counts, skipped, *told)).encode()
    yield about
    yield LENGTH.pack(len(about))


def _read(path: Path, key: str) -> Loaded[Any] | None:
    """What `_write` wrote under this key; None under another. ValueError where it is damaged."""
    file = path.open("rb")
    try:
        found = _opened(file, key)
    except BaseException:
        file.close()
        raise
    if found is None:
        file.close()
    return found


def _opened(file: BufferedReader, key: str) -> Loaded[Any] | None:
    end = file.seek(-LENGTH.size, os.SEEK_END)
    (length,) = LENGTH.unpack(file.read())
    file.seek(end - length)
    about = _About(*json.loads(file.read(length)))
    if about.key != key:
        return None
    file.seek(0)
    seal = file.read(SEAL).decode("ascii").strip()
    if hashlib.file_digest(file, "sha256").hexdigest() != seal:
        raise ValueError("it is damaged: its SHA-256 is another")
    begins = array("q")
    rows = about.train + about.heldout
    file.seek(end - length - begins.itemsize * (rows + 1))
    begins.fromfile(file, rows + 1)

    def row(index: int) -> Any:
        begin, end = begins[index], begins[index + 1]
        try:
            record = os.pread(file.fileno(), end - begin, begin)
        except OSError as error:
            raise Transient(f"{file.name} cannot be read: {error.strerror}") from error
        return from_record(about.kind, record)

    train, heldout = (Each(row, part) for part in (range(about.train), range(about.train, rows)))
    skipped = [BadRow(*row) for row in about.skipped]
    return Loaded(train, heldout, skipped, about.unread, about.warnings)
