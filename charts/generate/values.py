"""What values.yaml says of each value: path, type, default, description. Pure.

A comment of a value begins with `--`, as in helm-docs, and with a type in parentheses where its
default does not show it:

    # -- (one of Fail, Ignore) What becomes of jobs while no replica answers.
    failurePolicy: Ignore

A mapping whose comment does not begin so is a group of values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import yaml

OF_DEFAULTS: Final = {str: "string", bool: "boolean", int: "integer"}
TYPE: Final = re.compile(r"^\((?P<type>[^)]+)\)\s+")


class UndocumentedValue(Exception):
    """A value without a description, or whose type nobody can tell."""


class Value(NamedTuple):
    """One value that can be set."""

    path: tuple[str, ...]
    type: str  # `string`, `one of A, B`, `list of …s`: as schema.py knows them
    default: Any
    text: str

    @property
    def name(self) -> str:
        """As for --set."""
        return ".".join(self.path)


def read_values(text: str) -> list[Value]:
    """All values, in the order of the file. Raises UndocumentedValue."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return list(_of_mapping(root, yaml.safe_load(text), text.splitlines(), ()))


def _of_mapping(
    node: yaml.MappingNode, defaults: dict[str, Any], lines: list[str], above: tuple[str, ...]
) -> Iterator[Value]:
    for key, child in node.value:
        path, default = (*above, str(key.value)), defaults[key.value]
        comment = _comment_above(lines, key.start_mark.line)
        if comment.startswith("-- "):
            yield _documented(path, default, comment.removeprefix("-- "))
        elif isinstance(child, yaml.MappingNode) and child.value:
            yield from _of_mapping(child, default, lines, path)
        else:
            raise UndocumentedValue(f"{'.'.join(path)}: write a comment `# -- …` above it")


def _comment_above(lines: list[str], number: int) -> str:
    """The comment that ends right above a line, as one line."""
    first = number
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(line.strip().removeprefix("#").strip() for line in lines[first:number])


def _documented(path: tuple[str, ...], default: Any, comment: str) -> Value:
    named = TYPE.match(comment)
    kind = named["type"] if named else OF_DEFAULTS.get(type(default))
    if kind is None:
        raise UndocumentedValue(f"{'.'.join(path)}: write its type, as in `# -- (object) …`")
    return Value(path, kind, default, comment[named.end() :] if named else comment)
