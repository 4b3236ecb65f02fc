"""Curves as text: braille dots, four high and two wide in each cell. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rlhf_cli.failures import Failure
from rlhf_cli.figures import KEY_FIGURES, figure_text
from rlhf_cli.report.collect import Run, StageRecord
from rlhf_cli.report.records import Series, series

HEIGHT: Final = 8
"""Lines of a chart."""
MARGIN: Final = 11
"""Columns for the numbers on the left."""
WIDEST: Final = 100
DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille cell (Unicode, U+2800 and on), by row and column."""


def chosen_stage(run: Run, name: str | None, metrics: Sequence[str] = ()) -> StageRecord:
    """The stage that is asked for; else the last one that recorded all of the metrics, or where
    none did, anything. Raises Failure."""
    recorded = {record.name: record for record in run.stages if record.rows}
    if name is None and recorded:
        having = [item for item in recorded.values() if _names(item).issuperset(metrics)]
        return (having or list(recorded.values()))[-1]
    if name is None or name not in recorded:
        known = ", ".join(recorded) or "none"
        wanted = f"stage {name}" if name else "any stage"
        raise Failure(f"there are no records of {wanted} yet; stages with records: {known}")
    return recorded[name]


def lines_of(record: StageRecord, metrics: Sequence[str]) -> dict[str, Series]:
    """The curves that are asked for, else those that stand for the stage. Raises Failure."""
    known = _names(record)
    for metric in metrics:
        if metric not in known:
            raise Failure(
                f"{record.name} has no metric {metric}", f"it has {', '.join(sorted(known))}"
            )
    wanted = metrics or [name for name in KEY_FIGURES.get(record.name, {}) if name in known]
    lines = {metric: series(record.rows, metric) for metric in wanted or sorted(known)[:4]}
    return {metric: points for metric, points in lines.items() if len(points) > 1} or lines


def _names(record: StageRecord) -> set[str]:
    return {name for row in record.rows for name in row.values}


def terminal_chart(title: str, points: Series, width: int) -> list[str]:
    """The lines of a chart with its scale on the left and the steps below."""
    columns = max(10, min(width, WIDEST) - MARGIN - 1)
    values = [value for _, value in points]
    low, high = min(values), max(values)
    canvas = _canvas(points, columns, low, high)
    newest = figure_text(values[-1])
    lines = ["", f"{title}   {newest} at step {points[-1][0]:,}"]
    for number, row in enumerate(canvas):
        label = {0: figure_text(high), HEIGHT - 1: figure_text(low)}.get(number, "")
        lines.append(f"{label:>{MARGIN - 1}} ┤{row}".rstrip())
    first, last = f"{points[0][0]:,}", f"{points[-1][0]:,}"
    return [*lines, f"{'':>{MARGIN}} {first}{last:>{columns - len(first)}}"]


def _canvas(points: Series, columns: int, low: float, high: float) -> list[str]:
    first, last = points[0][0], points[-1][0]
    across, up = (last - first) or 1, (high - low) or 1.0
    cells = [[0] * columns for _ in range(HEIGHT)]
    before: tuple[int, int] | None = None
    for step, value in points:
        x = round((step - first) / across * (2 * columns - 1))
        y = round((high - value) / up * (4 * HEIGHT - 1))
        for column, row in _line(before or (x, y), (x, y)):
            cells[row // 4][column // 2] |= DOTS[row % 4][column % 2]
        before = (x, y)
    return ["".join(chr(0x2800 + bits) if bits else " " for bits in row) for row in cells]


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Dots of a straight line, both ends included."""
    (x0, y0), (x1, y1) = start, end
    steps = max(abs(x1 - x0), abs(y1 - y0), 1)
    return [
        (round(x0 + (x1 - x0) * n / steps), round(y0 + (y1 - y0) * n / steps))
        for n in range(steps + 1)
    ]
