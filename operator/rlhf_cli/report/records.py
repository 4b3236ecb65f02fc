"""Reading what trainers recorded: metrics, answers, versions, rows left out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard


class MetricRow(NamedTuple):
    """Metrics of one step."""

    step: int
    values: dict[str, float]


class Answer(NamedTuple):
    """One model's answer to one prompt."""

    model: str
    id: str
    prompt: str
    text: str
    score: float | None
    finished: bool


Series = list[tuple[int, float]]


def merged_metrics(attempts: Sequence[Sequence[MetricRow]]) -> list[MetricRow]:
    """One history of several attempts.

    An attempt goes on from a checkpoint, so it does again what its predecessor did after that:
    the predecessor's rows from there on never led anywhere and are dropped.
    """
    history: list[MetricRow] = []
    for rows in attempts:
        if rows:
            first = min(row.step for row in rows)
            history = [row for row in history if row.step < first] + list(rows)
    return history


def series(rows: Iterable[MetricRow], metric: str) -> Series:
    """The points of one metric in order of steps; a later row of the same step wins."""
    points = {row.step: row.values[metric] for row in rows if metric in row.values}
    return sorted(points.items())


def read_metrics(file: Path) -> list[MetricRow]:
    """The rows of a metrics.jsonl; what is not a finite number is left out."""
    return [row for item in json_lines(file) if (row := _metric_row(item))]


def read_answers(file: Path) -> list[Answer]:
    """The rows of a samples.jsonl."""
    return [answer for item in json_lines(file) if (answer := _answer(item))]


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where the trainer wrote none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file. A line that was cut short by a kill is passed over."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def _metric_row(item: dict[str, Any]) -> MetricRow | None:
    step, metrics = item.get("step"), item.get("metrics")
    if not isinstance(step, int) or step.bit_length() > 63 or not isinstance(metrics, dict):
        return None
    values = {name: float(value) for name, value in metrics.items() if _is_finite(value)}
    return MetricRow(int(step), values)


def _answer(item: dict[str, Any]) -> Answer | None:
    texts = [item.get(key) for key in ("model", "id", "prompt", "answer")]
    if not all(isinstance(text, str) for text in texts):
        return None
    model, row, prompt, text = map(str, texts)
    score = item.get("score")
    return Answer(
        model,
        row,
        prompt,
        text,
        float(score) if _is_finite(score) else None,
        item.get("finished") is not False,
    )


def _is_finite(value: Any) -> TypeGuard[float]:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # JSON's integers have any length
        return False
