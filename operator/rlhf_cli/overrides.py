"""--set PATH=VALUE: change single fields of a manifest before it is checked."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Sequence
from typing import Any, get_origin

from rlhf_api.fields import aliases, bare, contract_in, lookup, members, path_text, suggestion
from rlhf_api.job import RLHFJob

from rlhf_cli.failures import Failure
from rlhf_cli.yaml_text import BadYaml, read_value

Parts = tuple[str | int, ...]

# A name, then `.name` or `[name]` for each step down; in brackets a name may hold dots.
_PATH = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[[^\[\]]+\])*")
_PART = re.compile(r"\[([^\[\]]+)\]|([^.\[\]]+)")
_INDEX = re.compile(r"[0-9]{1,9}")


def apply_overrides(obj: Any, overrides: Sequence[str]) -> Any:
    """A copy of the decoded manifest with each `path=value` set, in order. Raises Failure."""
    result = copy.deepcopy(obj)
    for override in overrides:
        path, value = parse_override(override)
        _set(result, path, value, override)
    return result


def parse_override(text: str) -> tuple[Parts, Any]:
    """Path and value of `spec.stages.ppo.kl.coef=0.05`; the value is YAML. Raises Failure."""
    name, found, value = text.partition("=")
    if not found or not _PATH.fullmatch(name):
        raise Failure(f"--set {text}: is not PATH=VALUE, such as spec.stages.ppo.kl.coef=0.05")
    path = tuple(_part(*part) for part in _PART.findall(name))
    _check_path(path, text)
    try:
        return path, read_value(value)
    except BadYaml as error:
        raise Failure(f"--set {text}: the value is not YAML: {error}") from None


def _part(in_brackets: str, name: str) -> str | int:
    return int(in_brackets) if _INDEX.fullmatch(in_brackets) else in_brackets or name


def _check_path(path: Parts, text: str) -> None:
    """Refuses a path that the contract does not know, with the one that was likely meant."""
    for depth in range(1, len(path) + 1):
        if lookup(RLHFJob, path[:depth]):
            continue
        parent = lookup(RLHFJob, path[: depth - 1])
        model = contract_in(parent.annotation) if parent else None
        names = list(aliases(model)) if model else []
        if depth == 1 and lookup(RLHFJob, ("spec", *path)):
            raise Failure(f"--set {text}: did you mean spec.{path_text(path)}?")
        raise Failure(f"--set {text}: {_unknown(path, depth, names)}")


def _unknown(path: Parts, depth: int, names: list[str]) -> str:
    here, word = path_text(path[: depth - 1]) if depth > 1 else "a manifest", str(path[depth - 1])
    if not names and depth > 2 and _is_map(path[: depth - 2]):
        name = ".".join(map(str, path[depth - 2 :]))
        return f"{here} has no fields; did you mean {path_text(path[: depth - 2])}[{name}]?"
    if not names:
        return f"{here} has no fields"
    guess = suggestion(word, names)
    hint = f"did you mean {guess}?" if guess else f"known are {', '.join(names)}"
    return f"{here} has no field {word}; {hint}"


def _is_map(path: Parts) -> bool:
    """Whether users choose the names below a path, as those of labels."""
    known = lookup(RLHFJob, path)
    return any(get_origin(bare(member)) is dict for member in members(known and known.annotation))


def _set(obj: Any, path: Parts, value: Any, text: str) -> None:
    for depth, part in enumerate(path[:-1], start=1):
        following = _child(obj, part)
        if following is None and _may_hold(obj, part):
            following = _new_container(path[:depth])
            _put(obj, part, following)
        obj = following
    if not _may_hold(obj, path[-1]):
        raise Failure(f"--set {text}: {path_text(path[:-1])} in the manifest cannot hold it")
    _put(obj, path[-1], value)


def _may_hold(obj: Any, part: str | int) -> bool:
    """Whether obj has a place of that name: any in a mapping, up to the next one in a list."""
    return isinstance(obj, dict) or (isinstance(obj, list) and _index(part) <= len(obj))


def _put(obj: Any, part: str | int, value: Any) -> None:
    if isinstance(obj, dict):
        obj[str(part)] = value
    else:
        obj[_index(part) : _index(part) + 1] = [value]


def _index(part: str | int) -> int:
    """The place in a list that `[0]` or `.0` names; beyond all lists where it names none."""
    return int(part) if _INDEX.fullmatch(str(part)) else sys.maxsize


def _new_container(path: Parts) -> dict[str, Any] | list[Any]:
    """An empty list or mapping, as the contract wants it at a path that the manifest left out."""
    known = lookup(RLHFJob, path)
    kinds = [get_origin(bare(member)) for member in members(known.annotation)] if known else []
    return [] if list in kinds else {}


def _child(obj: Any, part: str | int) -> Any:
    if isinstance(obj, dict):
        return obj.get(str(part))
    inside = isinstance(obj, list) and _index(part) < len(obj)
    return obj[_index(part)] if inside else None
