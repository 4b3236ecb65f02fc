"""What can be read of a manifest that is broken elsewhere.

The result is a contract object in which fields that could not be read are *absent*: reading one
raises AttributeError. A rule that needs such a field can say nothing, and every other rule still
speaks, so that a user sees all problems at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter

from rlhf_api.base import Contract
from rlhf_api.fields import contract_in, item_in

ModelT = TypeVar("ModelT", bound=Contract)
Broken = frozenset[tuple[Any, ...]]


def readable(model: type[ModelT], obj: dict[str, Any], broken: Iterable[tuple[Any, ...]]) -> ModelT:
    """The contract object with all that could be read; `broken` are the paths that could not."""
    paths = frozenset(broken)
    values: dict[str, Any] = {}
    absent: list[str] = []
    for name, info in model.model_fields.items():
        key = info.alias or name
        inner = _below(paths, key)
        if not inner and key in obj:
            values[name] = _clean(info.annotation, obj[key])
        elif inner and () not in inner and key in obj:
            _read_around(values, absent, name, info.annotation, obj[key], inner)
        elif inner or info.is_required():
            absent.append(name)
    result = cast(ModelT, model.model_construct(_fields_set=None, **values))
    for name in absent:
        result.__dict__.pop(name, None)
    return result


def is_absent(error: AttributeError) -> bool:
    """Whether an error is the reading of an absent field, and not a mistake in the code."""
    owner = error.obj
    return isinstance(owner, Contract) and error.name in type(owner).model_fields


def _below(paths: Broken, key: Any) -> Broken:
    return frozenset(path[1:] for path in paths if path and path[0] == key)


def _clean(annotation: Any, value: Any) -> Any:
    return TypeAdapter(annotation).validate_python(value, by_alias=True, by_name=False)


def _read_around(
    values: dict[str, Any], absent: list[str], name: str, annotation: Any, raw: Any, inner: Broken
) -> None:
    """A field with something broken inside: whole contracts are read as far as they go."""
    model, item = contract_in(annotation), contract_in(item_in(annotation))
    if model and isinstance(raw, dict):
        values[name] = readable(model, raw, inner)
    elif item and isinstance(raw, dict) and _all_readable(raw, inner):
        values[name] = {key: readable(item, raw[key], _below(inner, key)) for key in raw}
    elif item and isinstance(raw, list) and _all_readable(dict(enumerate(raw)), inner):
        values[name] = [readable(item, raw[at], _below(inner, at)) for at in range(len(raw))]
    else:
        absent.append(name)


def _all_readable(entries: dict[Any, Any], inner: Broken) -> bool:
    """Whether each entry is a mapping that is at most broken inside."""
    return all(
        isinstance(entry, dict) and () not in _below(inner, key) for key, entry in entries.items()
    )
