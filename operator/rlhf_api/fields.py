"""Finding a field of the contract by its path.

Error messages, `--set` and completion all ask the models themselves, so that a new field needs no
second description.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rlhf_api.base import Contract

Part = str | int
Path = tuple[Part, ...]
Model = type[Contract]


class Known(NamedTuple):
    """What the contract says of one path: its type, and the field that declares it."""

    annotation: Any
    field: FieldInfo | None


def path_text(path: Sequence[object]) -> str:
    """The path as users write it: spec.resources.tolerations[0].key."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "manifest"


def members(annotation: Any) -> Iterator[Any]:
    """The alternatives of a type, without None; Annotated stays on each."""
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        for member in get_args(annotation):
            yield from members(member)
    elif annotation is not NoneType:
        yield annotation


def bare(annotation: Any) -> Any:
    """The type below Annotated."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def contract_in(annotation: Any) -> Model | None:
    """The contract class that a type allows, or None."""
    for member in members(annotation):
        kind = bare(member)
        if isinstance(kind, type) and issubclass(kind, Contract):
            return kind
    return None


def contracts_in(root: Model) -> list[Model]:
    """The contract classes that the fields of root lead to, itself first, each once."""
    found: dict[Model, None] = {}

    def visit(annotation: Any) -> None:
        model = contract_in(annotation)
        if model and model not in found:
            found[model] = None
            for field in model.model_fields.values():
                visit(field.annotation)
        if (item := item_in(annotation)) is not None:
            visit(item)

    visit(root)
    return list(found)


def item_in(annotation: Any) -> Any:
    """The type of the items that a dict or list type holds, or None."""
    for member in members(annotation):
        if get_origin(bare(member)) in (dict, list):
            return get_args(bare(member))[-1]
    return None


def aliases(model: Model) -> dict[str, FieldInfo]:
    """The fields of a contract by the names that users write."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def lookup(root: Model, path: Sequence[object]) -> Known | None:
    """What the contract says of a path below root; None where it knows no such path."""
    known: Known | None = Known(root, None)
    for part in path:
        known = known and child(known.annotation, part)
    return known


def child(annotation: Any, part: object) -> Known | None:
    """One step down from a type."""
    if model := contract_in(annotation):
        field = aliases(model).get(str(part))
        return Known(field.annotation, field) if field else None
    item = item_in(annotation)
    return Known(item, None) if item is not None else None


def suggestion(word: str, known: Sequence[str]) -> str | None:
    """The known name that an unknown one was likely meant to be."""
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in known}
    key = re.sub(r"[^a-z0-9]", "", word.lower())
    close = difflib.get_close_matches(key, plain, n=1, cutoff=0.7)
    return plain[key] if key in plain else plain[close[0]] if close else None
