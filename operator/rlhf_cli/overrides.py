"""--set PATH=VALUE: change single fields of a manifest before it is checked."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any, get_origin

from rlhf_api.fields import aliases, bare, contract_in, lookup, members, path_text, suggestion
from rlhf_api.job import RLHFJob

from rlhf_cli.failures import Failure
from rlhf_cli.yaml_text import BadYaml, read_value

Parts = tuple[str | int, ...]


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
    if not found or not name:
        raise Failure(f"--set {text}: is not PATH=VALUE, such as spec.stages.ppo.kl.coef=0.05")
    path: Parts = tuple(
        int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", name)
    )
    _check_path(path, text)
    try:
        return path, read_value(value)
    except BadYaml as error:
        raise Failure(f"--set {text}: the value is not YAML: {error}") from None


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
    if not names:
        return f"{here} has no fields"
    guess = suggestion(word, names)
    hint = f"did you mean {guess}?" if guess else f"known are {', '.join(names)}"
    return f"{here} has no field {word}; {hint}"


def _set(obj: Any, path: Parts, value: Any, text: str) -> None:
    for depth, part in enumerate(path[:-1], start=1):
        following = _child(obj, part)
        if following is None and isinstance(obj, dict):
            following = obj[part] = _new_container(path[:depth])
        obj = following
    last = path[-1]
    if isinstance(obj, dict):
        obj[last] = value
    elif isinstance(obj, list) and isinstance(last, int) and last <= len(obj):
        obj[last : last + 1] = [value]
    else:
        raise Failure(f"--set {text}: {path_text(path[:-1])} in the manifest cannot hold it")


def _new_container(path: Parts) -> dict[str, Any] | list[Any]:
    """An empty list or mapping, as the contract wants it at a path that the manifest left out."""
    known = lookup(RLHFJob, path)
    kinds = [get_origin(bare(member)) for member in members(known.annotation)] if known else []
    return [] if list in kinds else {}


def _child(obj: Any, part: str | int) -> Any:
    if isinstance(obj, dict):
        return obj.get(part)
    inside = isinstance(obj, list) and isinstance(part, int) and part < len(obj)
    return obj[part] if inside else None
