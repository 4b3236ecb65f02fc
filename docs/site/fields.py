"""The page of all fields, made from the JSON schema of a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from rlhf_api.base import QUANTITY_PATTERN
from rlhf_api.schema import job_schema

Schema = dict[str, Any]
BOUNDS: Final = {
    "exclusiveMinimum": ">",
    "minimum": "≥",
    "exclusiveMaximum": "<",
    "maximum": "≤",
}
LARGEST: Final = (2**31 - 1, 2**63 - 1)
HEAD: Final = """\
# Fields

What a manifest may say, below `spec`; a bold field is needed. `kubectl explain rlhfjob.spec` shows
the same. A quantity is one of Kubernetes, such as `500m` of a CPU or `64Gi` of memory.

"""


def page() -> str:
    """Markdown: one table for each kind of object, in the order in which they are first used."""
    schema = job_schema()
    kinds: dict[str, Schema] = schema["$defs"]
    order = ["JobSpec"]
    for name in order:
        found = [used for item in kinds[name]["properties"].values() for used in _used(item)]
        order += [used for used in dict.fromkeys(found) if used not in order]
    return HEAD + "\n".join(_section(name, kinds) for name in order)


def _section(name: str, kinds: dict[str, Schema]) -> str:
    kind = kinds[name]
    needed = kind.get("required", [])
    rows = [
        _row(field, _described(item, kinds), field in needed)
        for field, item in kind["properties"].items()
    ]
    text = kind.get("description", "").splitlines()
    lines = [f"## {name}", "", *(text[:1]), "", "| field | type | default | |", "|---|---|---|---|"]
    return "\n".join([*lines, *rows, ""])


def _described(item: Schema, kinds: dict[str, Schema]) -> Schema:
    """The field, with the text of its kind where it has none of its own."""
    if "description" in item or "$ref" not in item:
        return item
    text = kinds[item["$ref"].rsplit("/", 1)[1]].get("description", "")
    return item | {"description": text.splitlines()[0] if text else ""}


def _row(field: str, item: Schema, is_needed: bool) -> str:
    name = f"**`{field}`**" if is_needed else f"`{field}`"
    default = item.get("default")
    shown = "" if default in (None, {}, []) else f"`{_plain(default)}`"
    text = item.get("description", "").replace("|", "\\|")
    return f"| {name} | {_type(item)} | {shown} | {text} |"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value) or '""'


def _type(item: Schema) -> str:
    """The type in words, with links to kinds of objects."""
    if "$ref" in item:
        name = item["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    for union in ("anyOf", "oneOf", "allOf"):
        if union in item:
            if any(part.get("pattern") == QUANTITY_PATTERN for part in item[union]):
                return "quantity"
            types = [_type(part) for part in item[union] if part.get("type") != "null"]
            return " or ".join(dict.fromkeys(types))
    if "enum" in item:
        return ", ".join(f"`{value}`" for value in item["enum"])
    if "const" in item:
        return f"`{item['const']}`"
    if item.get("type") == "array":
        return f"list of {_type(item.get('items', {}))}"
    if item.get("type") == "object":
        inside = item.get("additionalProperties")
        return f"map of {_type(inside)}" if isinstance(inside, dict) else "map"
    return ", ".join([str(item.get("type", "any")), *_bounds(item)])


def _bounds(item: Schema) -> Iterator[str]:
    """What a number may be; not the largest that its type can hold."""
    for key, sign in BOUNDS.items():
        if key in item and item[key] not in LARGEST:
            yield f"{sign} {item[key]:,}"


def _used(item: Any) -> Iterator[str]:
    """Names of the kinds that a field refers to."""
    if isinstance(item, dict):
        if "$ref" in item:
            yield item["$ref"].rsplit("/", 1)[1]
        for value in item.values():
            yield from _used(value)
    elif isinstance(item, list):
        for value in item:
            yield from _used(value)
