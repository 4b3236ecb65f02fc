"""One sentence a stage: what it did, from its own numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rlhf_cli.figures import figure_text
from rlhf_cli.report.collect import StageRecord
from rlhf_cli.report.records import Series, series


def verdict(record: StageRecord) -> str:
    """What became of a stage."""
    status = record.status
    if status.phase == "Failed":
        return f"failed ({status.reason or 'Error'}): {status.message or 'no message'}"
    if status.phase != "Succeeded":
        return f"{status.phase.lower()}{': ' + status.message if status.message else ''}"
    told = [text for part in PARTS.get(record.name, ()) if (text := part(record))]
    return "; ".join(told) or "done"


def _course(metric: str, label: str) -> Callable[[StageRecord], str]:
    """`label 2.31 → 1.05` from a metric's first to its last part."""

    def tell(record: StageRecord) -> str:
        points = series(record.rows, metric)
        if len(points) < 2:
            return ""
        first, last = _ends(points)
        return f"{label} {figure_text(first)} → {figure_text(last)}"

    return tell


def _final(metric: str, text: str) -> Callable[[StageRecord], str]:
    """A sentence around a final metric."""

    def tell(record: StageRecord) -> str:
        value = record.status.metrics.get(metric)
        return (
            "" if value is None else text.format(value=figure_text(value), percent=f"{value:.1%}")
        )

    return tell


def _dpo_accuracy(record: StageRecord) -> str:
    """KTO has no pairs: its rows are single answers that were called good or bad."""
    text = "prefers the chosen answer in {percent} of held-out pairs"
    if "dpo/kl_baseline" in record.status.metrics:
        text = "tells good from bad in {percent} of held-out answers"
    return _final("eval/accuracy", text)(record)


def _ends(points: Series) -> tuple[float, float]:
    """Means of the first and the last tenth."""
    values = [value for _, value in points]
    size = max(1, len(values) // 10)
    return sum(values[:size]) / size, sum(values[-size:]) / size


SCORE: Final = _final("eval/score", "score of its answers {value}")
PARTS: Final[dict[str, tuple[Callable[[StageRecord], str], ...]]] = {
    "sft": (_course("train/loss", "loss"), _final("eval/loss", "held-out loss {value}"), SCORE),
    "reward": (
        _final("eval/accuracy", "ranks {percent} of held-out pairs as people did"),
        _course("train/loss", "loss"),
    ),
    "ppo": (
        _course("ppo/reward", "reward"),
        _course("ppo/kl", "KL to the reference"),
        SCORE,
    ),
    "dpo": (
        _dpo_accuracy,
        _course("dpo/margin", "margin"),
        _final("eval/kl", "KL to the reference {value}"),
        SCORE,
    ),
}
