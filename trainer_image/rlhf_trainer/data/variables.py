"""`{{name}}` in rows: filled in where the user gave the name; other braces are the author's, but a
file that is full of names that nobody fills in was meant to be filled in, and is told of.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from rlhf_api.data import DataSource

from rlhf_trainer.data.rows import Row
from rlhf_trainer.errors import BadData

BRACES: Final = "{{"
BLANK: Final = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
"""A name that `variables` may fill."""
TOLD_FROM: Final = 1 / 2
"""Share of a file's rows with a name. Of LLaMA-Factory's identity.json 85 % have `{{name}}`; code
and templates have many names, each in few rows."""


class Variables:
    """Fills the rows of one address, and remembers which names they had."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self._given = given
        self._seen: set[str] = set()
        self._rows = Counter[str]()  # of each file
        self._left: defaultdict[str, Counter[str]] = defaultdict(Counter)  # rows of a file and name

    def fill(self, row: Row) -> Row:
        """The row with its names filled in, as far as they were given."""
        self._rows[row.file] += 1
        if not _has_braces(row.value):
            return row
        names: set[str] = set()
        filled = self._filled(row.value, names)
        self._seen |= names
        words = (name for name in names - self._given.keys() if name.isidentifier())
        self._left[row.file].update(words)
        return row._replace(value=filled)

    def refuse_missing(self, source: DataSource) -> None:
        """A name that no row has, beside others that nobody fills, was misspelt."""
        missing, left = self._given.keys() - self._seen, self._seen - self._given.keys()
        if missing and left:
            raise BadData(
                f"{source.source}: variables: no row has {_braced(missing)}; there are "
                f"{_braced(left)}"
            )

    def warnings(self) -> list[str]:
        """Of each file with names in many rows that nobody fills."""
        told = []
        for file, names in self._left.items():
            rows = self._rows[file]
            often = {name: n for name, n in sorted(names.items()) if n >= TOLD_FROM * rows}
            if often:
                counts = ", ".join(f"{_braced([name])} in {n}" for name, n in often.items())
                told.append(f"{file}: {counts} of {rows} rows, which `variables` would fill in")
        return told

    def _filled(self, value: Any, names: set[str]) -> Any:
        def value_of(match: re.Match[str]) -> str:
            names.add(match[1])
            return self._given.get(match[1], match[0])

        if isinstance(value, str):
            return BLANK.sub(value_of, value)
        if isinstance(value, list):
            return [self._filled(item, names) for item in value]
        if isinstance(value, dict):
            return {key: self._filled(item, names) for key, item in value.items()}
        return value


def _has_braces(value: Any) -> bool:
    if isinstance(value, str):
        return BRACES in value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_has_braces, items))


def _braced(names: Iterable[str]) -> str:
    return ", ".join(f"{{{{{name}}}}}" for name in sorted(names))
