"""A source to examples: read, understand, tell the good from the bad, hold some out."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

import numpy as np
from rlhf_api.data import DataSource

from rlhf_trainer.data.columns import Watched, mapped_columns
from rlhf_trainer.data.digests import path_of
from rlhf_trainer.data.examples import Dialogue, Labelled, PlainText, Preference, Prompt
from rlhf_trainer.data.examples_of_rows import (
    dialogues_of,
    labelled_of,
    language_of,
    preferences_of,
    prompts_of,
)
from rlhf_trainer.data.fetched import folder_of_split, heldout_split
from rlhf_trainer.data.layouts import Read, recognise
from rlhf_trainer.data.problems import BadRow, RowProblem, settle
from rlhf_trainer.data.reread import Reread
from rlhf_trainer.data.rows import Row, data_files, other_files, read_rows
from rlhf_trainer.data.sample import Sample
from rlhf_trainer.data.turns import refuse_media
from rlhf_trainer.data.variables import Variables
from rlhf_trainer.errors import BadData

T = TypeVar("T")
Make = Callable[[Row, Sample], list[T]]
log = logging.getLogger(__name__)

SHARED_FROM: Final = 0.01
"""Share of held-out rows with prompts of the training set that is told: greetings come twice."""
NAMES_OF_ROWS: Final = re.compile(r"id|idx|index|uuid|source|.*_id|__index_level_0__")
"""Columns that nobody misses."""
NAMED: Final = 8
"""Columns that are not read, as many as a message names."""
TOLD_EVERY: Final = 200_000
"""Rows, which take one CPU half a minute to read; then a line of the log says how far it is."""
LOOKED_AT: Final = 64
"""Good rows at the head of a file by whose columns its layout is recognised."""


class Loaded(NamedTuple, Generic[T]):
    """Examples of one source in file order, or what was made of them; ``skipped`` was left out on
    request."""

    train: Sequence[T]
    heldout: Sequence[T]
    skipped: list[BadRow]
    unread: Sequence[str] = ()  # files of the source's folder that nothing was read from
    warnings: Sequence[str] = ()  # what is hardly meant so


def load_dialogues(source: DataSource, paths: Mapping[str, str], seed: int) -> Loaded[Dialogue]:
    """Dialogues for SFT. Of preferences the best answer is taken. Raises BadData."""
    return _load(source, paths, seed, dialogues_of)


def load_preferences(source: DataSource, paths: Mapping[str, str], seed: int) -> Loaded[Preference]:
    """Pairs and ranked lists. Raises BadData."""
    return _load(source, paths, seed, preferences_of)


def load_prompts(source: DataSource, paths: Mapping[str, str], seed: int) -> Loaded[Prompt]:
    """Prompts: of any layout, what comes before the last answer; all of them. Raises BadData."""
    return _load(_whole(source), paths, seed, prompts_of)


def prompts_in_turn(source: DataSource, paths: Mapping[str, str]) -> Iterator[Prompt]:
    """Prompts of a source that `load_prompts` has accepted; no more of it is read than is asked
    for."""
    variables = Variables(source.variables)
    found = _rows(source, source.source, source.split, paths, variables)
    rows = _understood(source, found, prompts_of)
    return (item.example for row in rows if not isinstance(row, BadRow) for item in row)


def load_labelled(source: DataSource, paths: Mapping[str, str], seed: int) -> Loaded[Labelled]:
    """Answers with a label (KTO). Of a pair, the chosen is good and the rejected bad."""
    return _load(source, paths, seed, labelled_of)


def load_language(
    source: DataSource, paths: Mapping[str, str], seed: int
) -> Loaded[PlainText | Dialogue]:
    """Plain text or dialogues, for the pretraining mix; all of them. Raises BadData."""
    return _load(_whole(source), paths, seed, language_of)


def _whole(source: DataSource) -> DataSource:
    """The source with no rows held out: nothing is evaluated on them."""
    return source.model_copy(update={"eval_fraction": 0.0, "eval_source": None})


# --- reading --------------------------------------------------------------------------------------


class _Keyed(NamedTuple, Generic[T]):
    key: bytes  # of what was asked: rows with one prompt are held out together
    example: T


class _Found(NamedTuple, Generic[T]):
    read: Callable[[], Iterator[T]]
    draws: np.ndarray[Any, np.dtype[np.float64]]  # of each example; equal where prompts are
    bad: list[BadRow]
    warnings: list[str]


def _load(source: DataSource, paths: Mapping[str, str], seed: int, make: Make[T]) -> Loaded[T]:
    found = _read(source, source.source, source.split, paths, seed, make)
    root = folder_of_split(path_of(source.source, paths), source.split)
    learnt = data_files(root, source.split)
    if source.eval_source is None:
        unread = other_files(root, learnt)
        held = _held_out(found.draws, source.eval_fraction)
        parts = Reread(found.read, (~held).tolist()), Reread(found.read, held.tolist())
        return Loaded(*parts, found.bad, unread, found.warnings)
    split = heldout_split(source)
    heldout = _read(source, source.eval_source, split, paths, seed, make)
    held_files = data_files(folder_of_split(path_of(source.eval_source, paths), split), split)
    _refuse_own_rows(source, learnt, held_files)
    unread = other_files(root, [*learnt, *held_files])
    shared = _of_shared_prompts(source, found.draws, heldout.draws)
    warnings = found.warnings + heldout.warnings + shared
    both = [Reread(part.read, [True] * len(part.draws)) for part in (found, heldout)]
    return Loaded(both[0], both[1], found.bad + heldout.bad, unread, warnings)


def _refuse_own_rows(source: DataSource, learnt: Sequence[Path], held: Sequence[Path]) -> None:
    """A file that is in both would otherwise be judged by what was learnt of it. One that is
    mounted twice has two paths."""
    known = {_same_file(file) for file in learnt}
    both = next((file for file in held if _same_file(file) in known), None)
    if both is None:
        return
    if source.eval_source == source.source:
        raise BadData(
            f"{source.source}: evalSource is the source itself, which has no split 'test' of "
            "its own; without evalSource, evalFraction holds rows out"
        )
    raise BadData(
        f"{source.eval_source}: evalSource holds {both.name}, which is trained on as well; without "
        "evalSource, evalFraction holds rows out"
    )


def _of_shared_prompts(
    source: DataSource,
    learnt: np.ndarray[Any, np.dtype[np.float64]],
    held: np.ndarray[Any, np.dtype[np.float64]],
) -> list[str]:
    """What is asked in both sets is no test of what was learnt."""
    shared = int(np.isin(held, learnt).sum())
    if shared < SHARED_FROM * len(held):
        return []
    what = f"{shared} of {len(held)} rows of {source.eval_source} ask what is trained on as well"
    return [f"{what}: eval/ metrics flatter the model"]


def _same_file(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_dev, about.st_ino


def _read(
    source: DataSource,
    address: str,
    split: str,
    paths: Mapping[str, str],
    seed: int,
    make: Make[T],
) -> _Found[T]:
    """The examples at one address, to be read again; bad rows are settled as the source says."""
    draws = array("d")
    bad: list[BadRow] = []
    columns: dict[str, None] = {}
    unread: set[str] = set()
    variables = Variables(source.variables)
    total = 0
    rows = _noting_columns(_rows(source, address, split, paths, variables), columns)
    noting = make
    if make is not prompts_of:  # reward functions get all columns
        rows, noting = _watched(rows), _noting_unread(make, unread)
    for item in _understood(source, rows, noting):
        total += 1
        if total % TOLD_EVERY == 0:
            log.info("%s: %d rows are read", address, total)
        if isinstance(item, BadRow):
            bad.append(item)
        else:
            draws.extend(_draw(keyed.key, seed) for keyed in item)
    warnings = variables.warnings()
    if (address, split) == (source.source, source.split):  # held-out rows may have fewer
        _refuse_missing_columns(source, columns)
        variables.refuse_missing(source)
        warnings += _of_unread_columns([name for name in columns if name in unread])
    settle(source, bad, total)
    if not draws:
        raise BadData(f"{address}: no row can be used")
    again = partial(_again, source, address, split, paths, make, len(draws))
    return _Found(again, np.array(draws), bad, warnings)


def _again(
    source: DataSource,
    address: str,
    split: str,
    paths: Mapping[str, str],
    make: Make[T],
    count: int,
) -> Iterator[T]:
    """The examples that `_read` has counted. Raises BadData where there are others now."""
    rows = _rows(source, address, split, paths, Variables(source.variables))
    found = 0
    for item in _understood(source, rows, make):
        for keyed in () if isinstance(item, BadRow) else item:
            found += 1
            yield keyed.example
    if found != count:
        raise BadData(f"{address}: it changed while it was read: {count} examples, then {found}")


def _rows(
    source: DataSource,
    address: str,
    split: str,
    paths: Mapping[str, str],
    variables: Variables,
) -> Iterator[Row | BadRow]:
    """Rows with the user's variables filled in, as many as the source's limit."""
    root = folder_of_split(path_of(address, paths), split)
    try:
        for number, row in enumerate(read_rows(root, source, split)):
            if number == source.limit:
                return
            yield variables.fill(row) if isinstance(row, Row) else row
    except BadData as error:
        raise BadData(f"{address}: {error}") from None


def _noting_columns(
    rows: Iterable[Row | BadRow], columns: dict[str, None]
) -> Iterator[Row | BadRow]:
    """The rows, and in `columns` the names of all that they have."""
    for row in rows:
        if isinstance(row, Row):
            columns |= dict.fromkeys((*row.value, *row.nulls))
        yield row


def _watched(rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
    return (r._replace(value=Watched(r.value)) if isinstance(r, Row) else r for r in rows)


def _noting_unread(make: Make[T], unread: set[str]) -> Make[T]:
    """`make`, that has the columns in `unread` at which nobody has looked when it is called."""

    def noting(row: Row, sample: Sample) -> list[T]:
        if isinstance(row.value, Watched):
            unread.update(row.value.unseen())
        return make(row, sample)

    return noting


def _of_unread_columns(names: Sequence[str]) -> list[str]:
    told = [name for name in names if not NAMES_OF_ROWS.fullmatch(name)]
    more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return [f"columns that are not read: {', '.join(told[:NAMED])}{more}"] if told else []


def _refuse_missing_columns(source: DataSource, columns: Mapping[str, None]) -> None:
    """A name that no row has was misspelt: what it was to bring would be missing from all rows."""
    mapped = mapped_columns(source.columns)
    missing = {part: name for part, name in mapped.items() if name not in columns}
    if not missing or not columns:
        return
    first = "" if source.limit is None else f" among the first {source.limit}"
    lines = [f"columns.{part}: no row{first} has a column `{n}`" for part, n in missing.items()]
    raise BadData(f"{source.source}: {'; '.join(lines)}; there are {', '.join(columns)}")


def _understood(
    source: DataSource, rows: Iterable[Row | BadRow], make: Make[T]
) -> Iterator[list[_Keyed[T]] | BadRow]:
    """Each row as examples, or as a BadRow. Each file has a layout of its own."""
    for file, in_file in groupby(rows, key=lambda row: row.file):
        head: list[Row | BadRow] = []
        good = 0
        for row in in_file:
            head.append(row)
            good += isinstance(row, Row)
            if good == LOOKED_AT:
                break
        if not good:
            yield from (row for row in head if isinstance(row, BadRow))
            continue
        read = recognise(source, file, _columns(head))
        for rows_of_file in (head, in_file):
            yield from (_examples(row, read, make) for row in rows_of_file)


def _columns(rows: Iterable[Row | BadRow]) -> dict[str, Any]:
    """Every column with its first value that is not empty, or else an empty one."""
    columns: dict[str, Any] = {}
    for row in rows:
        if isinstance(row, Row):
            for name, value in row.value.items():
                if columns.get(name) in (None, "", []):
                    columns[name] = value
    return columns


def _examples(row: Row | BadRow, read: Read, make: Make[T]) -> list[_Keyed[T]] | BadRow:
    if isinstance(row, BadRow):
        return row
    try:
        refuse_media(row.value)
        sample = read(row.value)
        key = _key(sample)
        return [_Keyed(key, example) for example in make(row, sample)]
    except RowProblem as problem:
        return BadRow(row.file, row.line, str(problem), problem.hint)


# --- holding out ----------------------------------------------------------------------------------


def _key(sample: Sample) -> bytes:
    said = [(turn.role, turn.text) for turn in sample.prompt]
    asked = said if sample.text is None else sample.text
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).digest()


def _held_out(
    draws: np.ndarray[Any, np.dtype[np.float64]], fraction: float
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which examples are held out. It hangs on the seed and the prompt's text alone, so that rows
    with one prompt stay together and a row that is added moves no other. Of a small set at least
    one prompt is held out."""
    held = draws < fraction
    if fraction > 0 and not held.any() and draws.min() < draws.max():
        held = draws == draws.min()
    return held & ~held.all()


def _draw(key: bytes, seed: int) -> float:
    """A uniform number in [0, 1) from seed and key."""
    digest = hashlib.sha256(seed.to_bytes(8, "big") + key).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
