"""How objects are printed: one place for -o, the same for a cluster and for a directory."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, redirect_stdout
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TextIO

from rich.cells import cell_len, set_cell_size
from rlhf_api.crd import COLUMNS
from rlhf_api.job import GROUP, KIND, RLHFJob

from rlhf_cli.yaml_text import write_document

Object = dict[str, Any]
NOTHING: Final = "<none>"
DIRECTORY: Final = f"{GROUP}/directory"
"""Annotation of a run in a list; no file and no cluster has it."""
PART: Final = re.compile(r'\.(\w+)(?:\[\?\(@\.type=="(\w+)"\)\])?')
"""Of a JSONPath: `.phase`, or `.conditions[?(@.type=="Ready")]`."""
GAP: Final = "   "
NARROWEST: Final = 3
"""Characters of a column, without its gap; kubectl has the same."""


def print_objects(items: Sequence[Object], form: str, *, is_list: bool, namespaces: bool) -> None:
    """`form`: table, wide, json, yaml or name."""
    if form in DOCUMENTS:
        whole = _as_list(items) if is_list else items[0]
        print(DOCUMENTS[form](whole), end="")
    elif form == "name":
        for item in items:
            print(name_of(item))
    else:
        for line in table(rows(items, form == "wide", namespaces)):
            print(line)


def print_document(item: Object, form: str, *, is_first: bool) -> None:
    """One of several in a stream. `form`: json or yaml."""
    if form == "yaml" and not is_first:
        print("---")
    print(DOCUMENTS[form](item), end="")


def say(form: str, *lines: str) -> None:
    """Sentences about a job that is changed. `form`: text; with name there are none."""
    if any(lines) and form != "name":
        print(*lines, sep="\n", flush=True)


def tell_change(form: str, job: RLHFJob, *lines: str) -> None:
    """What was done to a job, in sentences, or with name by its name alone."""
    if form == "name":
        print(full_name(job.metadata.name), flush=True)
    say(form, *lines)


def told_aside(form: str, act: Callable[[], int]) -> int:
    """Acts; all that it prints goes to standard error where a program reads the output."""
    with aside(form):
        return act()


def aside(form: str) -> AbstractContextManager[TextIO]:
    """The same, of what is printed within."""
    return redirect_stdout(sys.stdout if form == "text" else sys.stderr)


def name_of(item: Object) -> str:
    """As kubectl names it: `rlhfjob.rlhf.dev/assistant`."""
    return full_name(item["metadata"]["name"])


def full_name(name: str) -> str:
    """The same, of a name."""
    return f"{KIND.lower()}.{GROUP}/{name}"


def heading(wide: bool, namespaces: bool) -> list[str]:
    """The columns of the CustomResourceDefinition."""
    names = [name.upper() for name, _, _, priority, _ in COLUMNS if wide or not priority]
    return [*(["NAMESPACE"] if namespaces else []), "NAME", *names]


def row(item: Object, wide: bool, namespaces: bool) -> list[str]:
    """The cells of one job."""
    meta = item["metadata"]
    cells = [
        _cell(_at(item, path), kind)
        for _, kind, path, priority, _ in COLUMNS
        if wide or not priority
    ]
    return [*([meta.get("namespace", "")] if namespaces else []), meta["name"], *cells]


def rows(items: Sequence[Object], wide: bool, namespaces: bool) -> list[list[str]]:
    """Heading and cells; of runs on this machine, with their directories."""
    lines = [heading(wide, namespaces), *(row(item, wide, namespaces) for item in items)]
    places = [place_of(item) for item in items]
    if not any(places):
        return lines
    return [[place, *line] for place, line in zip(["DIR", *places], lines, strict=True)]


def placed(item: Object, directory: Path) -> Object:
    """A run with its directory: runs that stand beside each other may share a name."""
    annotations = {**item["metadata"].get("annotations", {}), DIRECTORY: str(directory)}
    return {**item, "metadata": {**item["metadata"], "annotations": annotations}}


def place_of(item: Object) -> str:
    """The directory of a run that is one of a list; empty for a job on a cluster."""
    return str(item["metadata"].get("annotations", {}).get(DIRECTORY, ""))


def table(cells: Sequence[Sequence[str]], widths: Sequence[int] = ()) -> list[str]:
    """Lines with columns below each other, as kubectl prints them."""
    found = column_widths(cells, widths)
    return [
        GAP.join(
            set_cell_size(cell, width) for cell, width in zip(line, found, strict=True)
        ).rstrip()
        for line in cells
    ]


def column_widths(cells: Sequence[Sequence[str]], least: Sequence[int] = ()) -> list[int]:
    """Places in a terminal, where a Chinese character takes two."""
    columns = zip(*cells, strict=True)
    lows = least or [NARROWEST] * len(cells[0])
    return [max(low, *map(cell_len, column)) for low, column in zip(lows, columns, strict=True)]


def age(time: str | None, now: datetime | None = None) -> str:
    """Two units at most, as kubectl: 45s, 12m, 5h10m, 3d4h, 90d."""
    if not time:
        return NOTHING
    seconds = int(((now or datetime.now(UTC)) - datetime.fromisoformat(time)).total_seconds())
    seconds = max(0, seconds)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if hours < 3:
        return f"{minutes}m"
    if hours < 48:
        return f"{hours}h{minutes % 60}m" if hours < 8 and minutes % 60 else f"{hours}h"
    return f"{days}d{hours % 24}h" if days < 8 and hours % 24 else f"{days}d"


def document(item: Object) -> Object:
    """Without who wrote which field: kubectl hides it, too."""
    meta = {k: v for k, v in item["metadata"].items() if k != "managedFields"}
    return {**item, "metadata": meta}


def _as_list(items: Sequence[Object]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "List",
        "metadata": {"resourceVersion": ""},
        "items": [document(item) for item in items],
    }


def _json(item: Object) -> str:
    return json.dumps(document(item), ensure_ascii=False, indent=2) + "\n"


def _yaml(item: Object) -> str:
    return write_document(document(item))


DOCUMENTS: Final[dict[str, Callable[[Object], str]]] = {"json": _json, "yaml": _yaml}


def _at(item: Object, path: str) -> Any:
    """What a JSONPath of a column leads to: names, and of a list the item of a type."""
    found: Any = item
    for name, kind in PART.findall(path):
        found = found.get(name) if isinstance(found, dict) else None
        if kind:
            found = next((each for each in found or [] if each.get("type") == kind), None)
    return found


def _cell(value: Any, kind: str) -> str:
    if value is None:
        return ""
    if kind == "date":
        return age(value)
    if kind == "number":
        return _number(value)
    return str(value)


def _number(value: float) -> str:
    """As kubectl prints it (Go's %v): the fewest digits that tell it, with an exponent from a
    million on, and below a ten thousandth."""
    if isinstance(value, int):
        return str(value)
    exact = Decimal(repr(value)).normalize()
    if -4 <= exact.adjusted() < 6:
        return f"{exact:f}"
    mantissa, _, exponent = f"{exact:e}".partition("e")
    return f"{mantissa}e{int(exponent):+03}"
