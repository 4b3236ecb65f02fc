"""Files to rows: which files a source names, in which order, and which reader reads each.

Whatever the format, a row knows its file and line. What is read without complaint: a UTF-8 byte
order mark, CRLF, empty lines at the end and between rows of JSONL, a last line without newline.
What makes a bad row: broken JSON, a cut-off last line, NUL, text that is not UTF-8 (or half of a
surrogate pair), a row that is no object, a row above MAX_ROW_BYTES. Nothing is normalised: text
comes out with the code points that are in the file.
"""

from __future__ import annotations

import gzip
import io
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, cast

import pyarrow as pa
from rlhf_api.data import DataSource

from rlhf_trainer.data import columnar, delimited, json_rows
from rlhf_trainer.data.problems import BadRow
from rlhf_trainer.errors import BadData

__all__ = ["BadRow", "Row", "data_files", "other_files", "read_rows"]


class Row(NamedTuple):
    """One row as it is in the file: column names to values, absent (null) ones left out."""

    file: str  # path below the source, or the file's own name
    line: int
    value: dict[str, Any]
    nulls: tuple[str, ...] = ()  # columns that are there, with nothing in this row

    @property
    def id(self) -> str:
        """``file:line``, the name of the row in every message and metric."""
        return f"{self.file}:{self.line}"


Reader = Callable[[IO[bytes]], Iterator[tuple[int, dict[str, Any] | str]]]
"""Gives (line, row) or (line, why the row is bad); raises BadData where reading cannot go on."""

READERS: Final[dict[str, Reader]] = {
    ".jsonl": json_rows.read_lines,
    ".ndjson": json_rows.read_lines,
    ".json": json_rows.read_json,
    ".csv": delimited.read_csv,
    ".tsv": delimited.read_tsv,
    ".txt": delimited.read_text,
    ".parquet": columnar.read_parquet,
    ".arrow": columnar.read_arrow,
    ".feather": columnar.read_arrow,
}
METADATA: Final = frozenset(
    {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
    | {"fetched.json"}
)
"""Files that Hugging Face's tools and prepare put beside data; they hold no rows."""

ZSTD: Final = ".zst"
FROM_THE_START: Final = (".json", ".parquet", ".arrow", ".feather")
"""Kinds that are looked at before they are read, or from their end."""

NO_DATA: Final = ("", ".md", ".py")
"""Kinds of files that nobody takes for data: of what else is not read, people are told."""

SPLIT_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
BETWEEN_WORDS: Final = re.compile(r"[-._ 0-9]+")
"""What a split's name stands between. Words and separators are those of Hugging Face's datasets
(SPLIT_KEYWORDS and NON_WORDS_CHARS in its data_files.py), but in any case."""


def read_rows(
    path: Path | str, source: DataSource, split: str | None = None
) -> Iterator[Row | BadRow]:
    """All rows below ``path`` in order of file name and line, bad ones as BadRow.

    Raises BadData where there is no file, or reading cannot go on after a break.
    """
    root = Path(path)
    for file in data_files(root, split or source.split):
        name = file.name if root.is_file() else file.relative_to(root).as_posix()
        yield from _rows_of(file, name)


def _rows_of(file: Path, name: str) -> Iterator[Row | BadRow]:
    reader = READERS[_kind(file)]
    count = 0
    try:
        with _opened(file) as stream:
            for line, value in reader(stream):
                count += 1
                yield (
                    BadRow(name, line, value) if isinstance(value, str) else _row(name, line, value)
                )
    except BadData as error:
        raise BadData(f"{name}:{error}") from None
    except (OSError, EOFError) as error:
        raise BadData(f"{name}: cannot be read: {error}") from None
    if not count:
        raise BadData(f"{name}: the file holds no rows")


def _row(name: str, line: int, value: dict[str, Any]) -> Row | BadRow:
    nulls = tuple(key for key, item in value.items() if item is None)
    value = {key: item for key, item in value.items() if item is not None}
    reason = _unusable_text(value)
    return BadRow(name, line, reason) if reason else Row(name, line, value, nulls)


def _unusable_text(value: Any) -> str | None:
    """Why some text inside a row cannot be tokenised, or None."""
    if isinstance(value, str):
        if "\x00" in value:
            return "the text holds a NUL character"
        try:
            value.encode()
        except UnicodeEncodeError:
            return "the text is not valid UTF-8 (half of a surrogate pair, or stray bytes)"
        return None
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return None
    return next((reason for item in value if (reason := _unusable_text(item))), None)


def data_files(root: Path, split: str) -> list[Path]:
    """The data files of a source, sorted by path.

    In a folder whose folder or file names tell several splits apart (helpful-base/test.jsonl.gz,
    train-00000-of-00002.parquet), those of other splits are left; files that name none are for
    training. A single file, or a folder of one split alone, is taken as it is.
    """
    if root.is_file():
        if _kind(root) not in READERS:
            raise BadData(f"{root.name}: unknown kind of file; known are {_known_kinds()}")
        return [root]
    if not root.is_dir():
        raise BadData(f"{root}: there is no such file or folder")
    files = [path for path in sorted(root.rglob("*")) if _is_data(path, root)]
    by_split = {path: _split_of(path.relative_to(root).as_posix()) for path in files}
    if len(set(by_split.values())) > 1:
        asked = _canonical(split)
        wanted = {asked} if asked in ("validation", "test") else {asked, None}
        files = [path for path in files if by_split[path] in wanted]
    if not files:
        raise BadData(f"{root}: no data file of split {split!r}; known kinds are {_known_kinds()}")
    return files


def other_files(root: Path, read: Collection[Path]) -> list[str]:
    """Files of a folder that are not read, by their paths in it, where people may think they are:
    those of other splits, and of kinds that no reader knows."""
    if root.is_file():
        return []
    found = (path for path in sorted(root.rglob("*")) if _is_seen(path, root))
    others = (path for path in found if path not in read and _kind(path) not in NO_DATA)
    return [path.relative_to(root).as_posix() for path in others]


def _is_data(path: Path, root: Path) -> bool:
    return _kind(path) in READERS and _is_seen(path, root)


def _is_seen(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not hidden and path.name not in METADATA and path.is_file()


def _kind(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz").removesuffix(ZSTD)).suffix


def _known_kinds() -> str:
    return ", ".join(READERS) + ", each also with .gz or .zst"


def _canonical(split: str) -> str:
    return next((name for name, words in SPLIT_NAMES.items() if split in words), split)


def _split_of(relative: str) -> str | None:
    """The split that a path names: its innermost folder that names one, else the file; of several
    words the last."""
    *folders, file = relative.lower().split("/")
    for part in (*reversed(folders), file):
        for word in reversed(BETWEEN_WORDS.split(part)):
            for name, words in SPLIT_NAMES.items():
                if word in words:
                    return name
    return None


def _opened(file: Path) -> IO[bytes]:
    if file.name.lower().endswith(".gz"):
        return cast(IO[bytes], gzip.open(file, "rb"))
    if file.name.lower().endswith(ZSTD):
        return _unpacked(file)
    return file.open("rb")


def _unpacked(file: Path) -> IO[bytes]:
    """What a file holds that was compressed by zstd, which gives its bytes once; of kinds that are
    read twice, on disk."""
    stream = cast(IO[bytes], io.BufferedReader(pa.input_stream(str(file), compression="zstd")))
    if _kind(file) not in FROM_THE_START:
        return stream
    whole = tempfile.TemporaryFile()  # noqa: SIM115  (whoever reads it closes it)
    with stream:
        shutil.copyfileobj(stream, whole)
    whole.seek(0)
    return whole
