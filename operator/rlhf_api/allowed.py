"""What a field may hold, in words: type, bounds, choices, an example, its default."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from rlhf_api.base import (
    INT64_MAX,
    LABEL_KEY_PATTERN,
    LABEL_VALUE_PATTERN,
    QUANTITY_PATTERN,
    SUBDOMAIN,
)
from rlhf_api.fields import Known, aliases, contract_in, members
from rlhf_api.resources import RESOURCE_NAME
from rlhf_api.storage import FOLDER_PATTERN

PATTERNS: Final[dict[str, str]] = {
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$": "lower-case letters, digits and '-' inside",
    f"^{SUBDOMAIN}$": "lower-case letters, digits and '-' or '.' inside",
    LABEL_KEY_PATTERN: "a label's name",
    LABEL_VALUE_PATTERN: "a label's value: letters, digits and '-', '_' or '.' inside",
    RESOURCE_NAME: "an extended resource, DOMAIN/NAME",
    FOLDER_PATTERN: "s3://BUCKET/FOLDER or gs://BUCKET/FOLDER",
    r"^[A-Za-z_][A-Za-z0-9_]*$": "letters, digits and '_', and no digit first",
    r"^(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+$": "an absolute path",
    QUANTITY_PATTERN: "a quantity such as 500m, 16 or 64Gi",
    r"^[^\x00-\x1f]+$": "text without control characters",
    r"^[^\x00-\x20]+$": "text without spaces",
    r"^[A-Za-z0-9_./-]+$": "letters, digits and . _ / -",
    r"^https?://[^\x00-\x20]+$": "an address that starts with http:// or https://",
    r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$": "module:function",
}
"""Words for the patterns that fields share; any other pattern is shown as it is."""


def describe(known: Known) -> str:
    """What may stand at a path: type, bounds, choices, an example."""
    limits = _limits(known.field.metadata if known.field else [])
    texts = [_one(member, limits) for member in members(known.annotation)]
    text = " or ".join(dict.fromkeys(text for text in texts if text))
    return text + _example(known.field)


def default_of(field: FieldInfo | None) -> str:
    """The default as YAML shows it, or an empty text where there is none worth showing."""
    if field is None or field.is_required() or field.default_factory or field.default is None:
        return ""
    return shown(field.default)


def shown(value: object, limit: int = 60) -> str:
    """A value as a user would recognise it, on one line and not too long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = _text(value, limit)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _text(value: object, limit: int) -> str:
    if isinstance(value, str):
        return repr(value[: limit + 2])
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value) if value.bit_length() < 200 else "a number of too many digits"
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return f"a value of type {type(value).__name__}"


def _limits(metadata: Sequence[Any]) -> dict[str, Any]:
    """Constraints such as ge, le, min_length, max_length, pattern from a field's metadata."""
    found: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, FieldInfo):
            found |= _limits(item.metadata)
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern"):
            if getattr(item, name, None) is not None:
                found[name] = getattr(item, name)
    return found


def _one(annotation: Any, limits: dict[str, Any]) -> str:
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return _one(inner, limits | _limits(metadata))
    if get_origin(annotation) is Literal:
        return _choice([shown(value).strip("'") for value in get_args(annotation)])
    if get_origin(annotation) is dict:
        return "a mapping"
    if model := contract_in(annotation):
        needed = [name for name, info in aliases(model).items() if info.is_required()]
        return "a mapping" + (f" with {' and '.join(needed)}" if needed else "")
    if get_origin(annotation) is list:
        return "a list that is not empty" if "min_length" in limits else "a list"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    name = names.get(annotation, "")
    return _string(limits) if annotation is str else name + _range(limits) if name else ""


def _choice(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else "one of " + ", ".join(words)


def _range(limits: dict[str, Any]) -> str:
    limits = {name: limit for name, limit in limits.items() if limit != INT64_MAX}
    low = (
        f"from {limits['ge']:,}"
        if "ge" in limits
        else f"above {limits['gt']:,}"
        if "gt" in limits
        else ""
    )
    high = (
        f"to {limits['le']:,}"
        if "le" in limits
        else f"below {limits['lt']:,}"
        if "lt" in limits
        else ""
    )
    if low.startswith("from") and not high:
        return f" of at least {limits['ge']:,}"
    if low and high:
        joint = "" if low.startswith("from") and high.startswith("to") else "and "
        return f" {low} {joint}{'up ' if joint and high.startswith('to') else ''}{high}"
    return f" {low or high}" if low or high else ""


def _string(limits: dict[str, Any]) -> str:
    pattern = str(limits.get("pattern", ""))
    if choice := re.fullmatch(r"\^\(([A-Za-z|]+)\)\$", pattern):
        return _choice(choice[1].split("|"))
    text = PATTERNS.get(pattern) or (f"text that matches {pattern}" if pattern else "text")
    return text + (
        f", at most {limits['max_length']:,} characters" if "max_length" in limits else ""
    )


def _example(field: FieldInfo | None) -> str:
    examples = [
        item
        for item in (field.examples or [] if field else [])
        if isinstance(item, str | int | float)
    ]
    return f"; for example {examples[0]}" if examples else ""
