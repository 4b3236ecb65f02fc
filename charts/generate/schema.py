"""values.schema.json: what Helm checks values against. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from values import UndocumentedValue, Value

Schema = dict[str, Any]

TYPES: Final[dict[str, Schema]] = {
    "string": {"type": "string"},
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "namespace": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63},
    "object": {"type": "object"},
    "map of strings": {"type": "object", "additionalProperties": {"type": "string"}},
}
"""By the type's name in values.yaml."""
NULLABLE: Final = ("array", "object")
"""Types of values that null takes away as people expect. Helm leaves out what is null before it
looks at the schema: of all else the absence is refused."""
GLOBAL: Final[Schema] = {
    "type": "object",
    "description": "Of a chart that has this one as a part; imageRegistry and imagePullSecrets "
    "count where image.registry and imagePullSecrets are empty.",
}


def schema_text(values: Sequence[Value]) -> str:
    """The file."""
    root = _closed()
    for value in values:
        group = root
        for name in value.path[:-1]:
            _need(group, name)
            group = group["properties"].setdefault(name, _closed())
        *_, name = value.path
        described = {"description": value.text, "default": value.default}
        group["properties"][name] = schema_of(value.type) | described
        if group["properties"][name]["type"] not in NULLABLE:
            _need(group, name)
    root["properties"]["global"] = GLOBAL
    return (
        json.dumps({"$schema": "http://json-schema.org/draft-07/schema#"} | root, indent=2) + "\n"
    )


def schema_of(kind: str) -> Schema:
    """The schema of a type as values.yaml names it. Raises UndocumentedValue for another."""
    if kind.startswith("list of "):
        item = kind.removeprefix("list of ")
        return {
            "type": "array",
            "items": schema_of(item.removesuffix("s") if item in PLURALS else item),
        }
    if kind.startswith("set of "):
        return schema_of(f"list of {kind.removeprefix('set of ')}") | {"uniqueItems": True}
    if kind.startswith("one of "):
        return {"type": "string", "enum": kind.removeprefix("one of ").split(", ")}
    if kind not in TYPES:
        known = ", ".join([*TYPES, "one of A, B", "list of …s", "set of …s"])
        raise UndocumentedValue(f"({kind}) is no type of a value; there are: {known}")
    return TYPES[kind]


PLURALS: Final = frozenset(f"{name}s" for name in TYPES)


def _closed() -> Schema:
    return {"type": "object", "additionalProperties": False, "required": [], "properties": {}}


def _need(group: Schema, name: str) -> None:
    if name not in group["required"]:
        group["required"].append(name)
