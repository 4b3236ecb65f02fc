"""pydantic's errors in plain words: where, what is wrong with what was given, what is allowed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from rlhf_api.allowed import default_of, describe, shown
from rlhf_api.fields import (
    Known,
    Model,
    Path,
    aliases,
    bare,
    contract_in,
    lookup,
    members,
    path_text,
    suggestion,
)
from rlhf_api.lists import DUPLICATE
from rlhf_api.problems import UNKNOWN_FIELD, Problem

NOT_GIVEN: Final = object()


def problems_of(errors: Sequence[Any], root: Model, obj: Any) -> list[Problem]:
    """One problem per place: what a union's members each say of it becomes one sentence."""
    problems: dict[str, Problem] = {}
    for error in errors:
        path = error_path(error, obj)
        problem = _problem(error, path, root, value_at(obj, path))
        problems.setdefault(problem.path, problem)
    return list(problems.values())


def error_path(error: Any, obj: Any) -> Path:
    """An error's place in the manifest, without the names of union members."""
    path: list[Any] = []
    for part in error["loc"]:
        if not _has(value_at(obj, path), part):
            break
        path.append(part)
    if error["type"] == "missing":
        path.append(error["loc"][-1])
    return tuple(path)


def value_at(obj: Any, path: Sequence[Any]) -> Any:
    """What stands at a path, or NOT_GIVEN."""
    for part in path:
        if not _has(obj, part):
            return NOT_GIVEN
        obj = obj[part]
    return obj


def _has(obj: Any, part: Any) -> bool:
    if isinstance(obj, dict):
        return part in obj
    return isinstance(obj, list) and isinstance(part, int) and 0 <= part < len(obj)


def _problem(error: Any, path: Path, root: Model, value: Any) -> Problem:
    kind = error["type"]
    if kind == "extra_forbidden":
        return _unknown(path, root)
    if error["loc"] and error["loc"][-1] == "[key]":
        return Problem(
            path_text(path), f"the name {shown(path[-1])} is not text", "a name in quotes"
        )
    if kind == DUPLICATE:
        return Problem(path_text(path), str(error["msg"]), "each of them once")
    known = lookup(root, path)
    allowed = describe(known) if known else ""
    if kind == "missing":
        return Problem(path_text(path), "is missing", allowed)
    if value is None:
        default = default_of(known.field) if known else ""
        leave = f"; leave it out for the default {default}" if default else ""
        return Problem(path_text(path), "has no value", allowed + leave)
    if known and _is_unquoted(value, known):
        allowed += "; text stands in quotes"
    return Problem(path_text(path), _complaint(error, value), allowed)


def _is_unquoted(value: Any, known: Known) -> bool:
    """Whether YAML made a number or a truth value of what may have been meant as text."""
    kinds = [bare(member) for member in members(known.annotation)]
    return isinstance(value, bool | int | float) and str in kinds and type(value) not in kinds


def _unknown(path: Path, root: Model) -> Problem:
    """A field that the contract does not have, with the one that was likely meant."""
    parent = lookup(root, path[:-1])
    model = contract_in(parent.annotation) if parent else None
    names = list(aliases(model)) if model else []
    guess = suggestion(str(path[-1]), names)
    allowed = f"did you mean {guess}?" if guess else f"known here: {', '.join(names)}"
    return Problem(path_text(path), UNKNOWN_FIELD, allowed)


def _complaint(error: Any, value: Any) -> str:
    """What is wrong with a value that was given."""
    kind, given = error["type"], shown(value)
    if kind in ("string_too_long", "too_long"):
        return f"is too long: {len(value):,} {'characters' if isinstance(value, str) else 'items'}"
    if kind == "string_too_short":
        return "is empty" if value == "" else f"is too short: {given}"
    if kind in ("greater_than", "greater_than_equal"):
        return f"{given} is too small"
    if kind in ("less_than", "less_than_equal"):
        return f"{given} is too large"
    if kind == "string_unicode":
        return "holds characters that are not valid Unicode"
    return f"{given} is not allowed here"


def guessed(errors: Sequence[Any], root: Model, obj: Any) -> Iterator[Path]:
    """Known fields that unknown ones were likely meant to be; their values are unknown."""
    for error in errors:
        if error["type"] != "extra_forbidden":
            continue
        path = error_path(error, obj)
        parent = lookup(root, path[:-1])
        model = contract_in(parent.annotation) if parent else None
        if model and (guess := suggestion(str(path[-1]), list(aliases(model)))):
            yield (*path[:-1], guess)
