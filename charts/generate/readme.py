"""The table of values in the chart's README. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from values import Value

BEGIN: Final = "<!-- values: made from values.yaml by `make generate` -->"
END: Final = "<!-- end of values -->"


def with_table(page: str, values: Sequence[Value]) -> str:
    """The page with the table between its two marks. Raises ValueError where they are missing."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page lacks {BEGIN} or {END}")
    rows = ["| value | what it does | default |", "|---|---|---|", *map(_row, values)]
    return "\n".join([before + BEGIN, *rows, END + after])


def _row(value: Value) -> str:
    kind = "" if value.type in ("string", "boolean", "integer") else f" ({value.type})"
    text = value.text.replace("|", "\\|")
    return f"| `{value.name}` | {text}{kind} | `{_shown(value.default)}` |"


def _shown(default: Any) -> str:
    return json.dumps(default, ensure_ascii=False).replace("|", "\\|")
