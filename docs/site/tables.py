"""Writes the tables of metrics and of events into their pages, from the operator's own words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from rlhf_operator.events import WHEN
from rlhf_operator.metrics import Metrics

REFERENCE: Final = Path(__file__).parents[1] / "reference"


def metrics() -> Iterator[str]:
    """A row for each, those of the operator itself last."""
    yield "| name | type | labels | what |"
    yield "|---|---|---|---|"
    registry = Metrics().registry
    rows = []
    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        made = registry._names_to_collectors.get(name)
        own: Sequence[str] = getattr(made, "_labelnames", ())
        labels: Sequence[str] = getattr(family, "_labelnames", None) or own
        rows.append((name, family.type, ", ".join(labels), family.documentation))
    for row in sorted(rows, key=lambda row: (row[0].startswith("rlhf_operator"), row[0])):
        name, kind, labels, what = row
        yield f"| `{name}` | {kind} |{f' {labels} ' if labels else ' '}| {what} |"


def events() -> Iterator[str]:
    """A row for each, in the order in which they come."""
    yield "| event | when |"
    yield "|---|---|"
    for reason, when in WHEN.items():
        yield f"| `{reason}` | {when} |"


TABLES: Final[dict[str, tuple[str, Callable[[], Iterator[str]]]]] = {
    "metrics": ("monitoring.md", metrics),
    "events": ("conditions.md", events),
}
"""By the name that marks the place in the page."""


def page(name: str) -> tuple[Path, str]:
    """The page that a table stands in, and its text with the table as it is now."""
    file, rows = TABLES[name]
    text = (REFERENCE / file).read_text("utf-8")
    place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- {name} end -->)", re.S)
    table = "\n".join(["", *rows(), "", ""])
    made, count = place.subn(lambda found: found[1] + table + found[2], text)
    assert count == 1, f"{file} has no place for {name}"
    return REFERENCE / file, made


if __name__ == "__main__":
    for name in TABLES:
        file, text = page(name)
        file.write_text(text, "utf-8")
