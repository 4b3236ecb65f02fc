"""Which column of a row holds what: the names that real data sets use, and the user's own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rlhf_api.data import Columns, Format

from rlhf_trainer.data.problems import RowProblem

SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "prompt": (
        "prompt", "query", "question", "instruction", "problem", "inputs", "user", "human", "input",
    ),
    "input": ("input", "context"),
    "answer": (
        "answer", "response", "completion", "output", "target", "targets", "solution", "reply",
        "assistant", "generation",
    ),
    "system": ("system", "system_prompt", "system_message"),
    "history": ("history",),
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog"),
    "chosen": ("chosen", "chosen_response", "preferred", "response_j", "accepted"),
    "rejected": ("rejected", "rejected_response", "dispreferred", "response_k"),
    "answers": ("answers", "responses", "completions", "candidates", "outputs", "output", "answer"),
    "ranks": ("ranks", "rank", "ranking"),
    "margin": ("margin",),
    "label": ("label", "kto_tag"),
    "text": ("text", "content"),
    "scores": ("scores", "ratings", "score"),
    "tools": ("tools", "functions"),
}  # fmt: skip
"""Names by part, the most telling first. ``scores`` and ``tools`` have no mapping of their own."""


def mapped_columns(columns: Columns) -> dict[str, str]:
    """The user's own names, by part."""
    return {part: name for part, name in columns.model_dump(by_alias=False).items() if name}


class Names:
    """The columns of one file, by part."""

    def __init__(
        self, columns: Columns, examples: Mapping[str, Any], format: Format = "auto"
    ) -> None:
        """``examples``: each column of the file with one value that is not null."""
        self.examples, self.format = examples, format
        self._mapped = mapped_columns(columns)

    def mapped(self, part: str) -> bool:
        """Whether the user named the column."""
        return part in self._mapped

    def unread(self, parts: frozenset[str]) -> list[str]:
        """The parts whose columns the user named, and the file has, that are none of these."""
        there = (part for part, name in self._mapped.items() if name in self.examples)
        return [part for part in there if part not in parts]

    def get(self, part: str, *, but: str | None = None) -> str | None:
        """The column of a part, or None. ``but`` is a column that is taken already."""
        return self._found(part, self.examples, but)

    def of_row(self, part: str, row: Mapping[str, Any], *, but: str | None = None) -> str | None:
        """The column of a part that rows may do without: the first that has it may come late."""
        return self._found(part, row, but)

    def example(self, part: str) -> Any:
        """A value of the part's column, or None."""
        column = self.get(part)
        return None if column is None else self.examples.get(column)

    def _found(self, part: str, columns: Mapping[str, Any], but: str | None) -> str | None:
        own = self._mapped.get(part)
        if own is not None:
            return own
        taken = {but, *self._mapped.values()}
        return next((n for n in SYNONYMS[part] if n in columns and n not in taken), None)


class Watched(dict[str, Any]):
    """A row that remembers which of its columns were looked at."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        self._seen: set[str] = set()

    def unseen(self) -> Iterator[str]:
        """The others, as far as there is something in them."""
        for name, value in self.items():
            if name not in self._seen and value not in ("", [], {}):
                yield name

    def __getitem__(self, name: str) -> Any:
        self._seen.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._seen.add(name)
        return super().get(name, default)


def cell(row: Mapping[str, Any], column: str) -> Any:
    """The value in a column that every row must have."""
    if column not in row:
        raise RowProblem(f"`{column}` is missing")
    return row[column]


def truth(value: Any, column: str) -> bool:
    """A label as a truth value."""
    known = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    label = known.get(str(value).lower())
    if label is None:
        raise RowProblem(f"`{column}` is {value!r}, neither true nor false")
    return label


def number(value: Any, column: str) -> float:
    """A finite number, also one that CSV gave as text."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):  # pandas writes NaN where there is none
        raise RowProblem(f"`{column}` is {value!r}, not a number")
    return found
