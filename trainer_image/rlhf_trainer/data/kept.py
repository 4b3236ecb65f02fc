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
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from importlib.metadata import version
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from rlhf_api.run import StageRun

from rlhf_trainer.data.digests import path_digest, source_size
from rlhf_trainer.data.each import Each
from rlhf_trainer.data.encode import Keep
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
        read: Callable[[Keep[E]], Loaded[E]],
        size: Callable[[], int],
    ) -> None:
        """`key` changes with anything that would make other rows; None: nothing is kept. `read`
        reads and encodes them, and gives each to a `Keep`. `size`: bytes of the data, as encoded
        rows take about as many."""
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
        CPUs, each on its way to the file; whether it was written.

        Where the file cannot be written, a line in the log says so, and no more. Raises what `read`
        raises.
        """
        if self.key is None or self._found() is not None or not self._has_room():
            return False
        rows = None
        with on_all_cpus(), _Draft(self.path) as draft:
            try:
                rows = self._read(draft.keep)
                draft.finish(self.key, rows)
                return True
            except (OSError, ValueError) as error:
                log.warning("rows are not kept in %s: %s", self.path, error)
                self._rows = rows or self._read(list)
        return False

    def rows(self) -> Loaded[E]:
        """The rows in the file; where it does not hold them, they are read and encoded, on one CPU:
        all ranks do so at once."""
        return self._found() or self._read(list)

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


class _Draft:
    """A file in the making, under another name until all of it is there. What leaves it unfinished
    leaves no file; its rows can be read as long as somebody has them."""

    def __init__(self, path: Path) -> None:
        self._path, self._draft = path, _draft_of(path)
        self._file = self._draft.open("w+b")
        self._file.write(b"0" * SEAL)
        self._begins, self._kind = array("q", [SEAL]), ""

    def __enter__(self) -> _Draft:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._file.close()
        self._draft.unlink(missing_ok=True)

    def keep(self, rows: Iterable[E]) -> Sequence[E]:
        """Write rows behind those that are there, and give them back as they are read from
        there. ValueError for a row that has no record."""
        first = len(self._begins) - 1
        for row in rows:
            record, self._kind = to_record(row), type(row).__name__
            self._file.write(record)
            self._begins.append(self._begins[-1] + len(record))
        self._file.flush()
        of_file = partial(_row, self._file, self._kind, self._begins)
        return Each(of_file, range(first, len(self._begins) - 1))

    def finish(self, key: str, rows: Loaded[Any]) -> None:
        """Give it its name. `rows` have all that was kept."""
        skipped = [list(row) for row in rows.skipped]
        counts = len(rows.train), len(rows.heldout)
        told = list(rows.unread), list(rows.warnings)
        about = json.dumps(_About(key, self._kind, *counts, skipped, *told)).encode()
        for part in (self._begins.tobytes(), about, LENGTH.pack(len(about))):
            self._file.write(part)
        self._file.seek(SEAL)
        seal = hashlib.file_digest(self._file, "sha256").hexdigest()
        self._file.seek(0)
        self._file.write(f"{seal}\n".encode())
        self._file.flush()
        sync(self._draft)
        self._draft.replace(self._path)
        sync(self._path.parent)
        self._file.close()


def _row(file: BufferedIOBase, kind: str, begins: Sequence[int], index: int) -> Any:
    begin, end = begins[index], begins[index + 1]
    try:
        record = os.pread(file.fileno(), end - begin, begin)
    except OSError as error:
        raise Transient(f"rows that were kept cannot be read: {error.strerror}") from error
    return from_record(kind, record)


def _read(path: Path, key: str) -> Loaded[Any] | None:
    """What `_Draft` wrote under this key; None under another. ValueError where it is damaged."""
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
    row = partial(_row, file, about.kind, begins)
    train, heldout = (Each(row, part) for part in (range(about.train), range(about.train, rows)))
    skipped = [BadRow(*row) for row in about.skipped]
    return Loaded(train, heldout, skipped, about.unread, about.warnings)
