"""What a setting changes in the objects that Helm renders: field by field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from chart import Object

ANY: Final = object()
"""Stands for whatever value a field has now."""


def difference(before: Sequence[Object], after: Sequence[Object]) -> dict[str, Any]:
    """Each field that differs, as `Kind name path.to.field`: its value now; None: it is gone."""
    old, new = _fields(before), _fields(after)
    changed = {path: value for path, value in new.items() if old.get(path, ANY) != value}
    return changed | {path: None for path in old if path not in new}


def unexpected(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """What differs otherwise than expected; a `*` in an expected path stands for any text."""
    patterns = {
        re.compile(".*".join(map(re.escape, path.split("*"))), re.S): value
        for path, value in expected.items()
    }
    wrong = [
        f"{path} is {value!r}"
        for path, value in found.items()
        if not any(
            pattern.fullmatch(path) and wanted in (ANY, value)
            for pattern, wanted in patterns.items()
        )
    ]
    unmet = [p.pattern for p in patterns if not any(p.fullmatch(path) for path in found)]
    return [*wrong, *(f"{pattern} is as it was" for pattern in unmet)]


def _fields(objects: Sequence[Object]) -> dict[str, Any]:
    return {
        path: value
        for item in objects
        for path, value in _leaves(item, f"{item['kind']} {item['metadata']['name']}", " ")
    }


def _leaves(value: Any, path: str, joint: str = ".") -> Iterator[tuple[str, Any]]:
    """Members of a list are known by name where they have one; plain ones by what they are."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{path}{joint}{name}")
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}.{item.get('name', number)}")
    elif isinstance(value, list) and value:
        for item in value:
            yield f"{path}[{item}]", True
    else:
        yield path, value
