"""The course of a stage's figures while somebody watches, as small bars of text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Final

BARS: Final = "▁▂▃▄▅▆▇█"
LOGGED: Final = {
    "loss": "train/loss",
    "accuracy": "train/accuracy",
    "reward": "ppo/reward",
    "kl": "ppo/kl",
}
"""Figures in a trainer's lines of progress, and the metrics that they are."""
LINE: Final = re.compile(r"^(?:\[rank 0\] )?\w+  step (\d{1,15})/\d+  (.*)$")
STEP: Final = "current_step"
SHOWN: Final[dict[str, tuple[str, ...]]] = {
    "sft": ("train/loss",),
    "reward": ("train/loss", "train/accuracy"),
    "ppo": ("ppo/reward", "ppo/kl"),
    "dpo": ("train/loss", "dpo/margin"),
}
Points = dict[float, float]
"""Values by step."""


class History:
    """Points of each stage's metrics: from the log, then from each new status."""

    def __init__(self) -> None:
        self._points: dict[tuple[str, str], Points] = {}

    def begin(self, stage: str, earlier: Mapping[str, Points]) -> None:
        """Takes what was before."""
        for metric, points in earlier.items():
            known = self._points.setdefault((stage, metric), {})
            self._points[stage, metric] = {**points, **known}

    def note(self, stage: str, metrics: Mapping[str, float]) -> None:
        """Takes a status's newest values. Where it names no step, each new value counts as one."""
        for metric in SHOWN.get(stage, ()):
            if metric not in metrics:
                continue
            points = self._points.setdefault((stage, metric), {})
            newest = max(points, default=0.0)
            is_new = points.get(newest) != metrics[metric]
            if STEP in metrics or is_new:
                points[metrics.get(STEP, newest + 1)] = metrics[metric]

    def of(self, stage: str, metric: str) -> list[float]:
        """Values in the order of their steps."""
        return [value for _, value in sorted(self._points.get((stage, metric), {}).items())]


def from_log(lines: Iterable[str]) -> dict[str, Points]:
    """What a trainer's lines tell: `ppo  step 17/30  reward 4.25  kl 1.4  lr 1e-04  eta 0:06`."""
    found: dict[str, Points] = {}
    for line in lines:
        if match := LINE.match(line.strip()):
            for label, text in re.findall(r"(\w+) (\S+)", match[2]):
                value = _number(text)
                if label in LOGGED and value is not None:
                    found.setdefault(LOGGED[label], {})[float(match[1])] = value
    return found


def _number(text: str) -> float | None:
    """A bar has no height for what is not finite."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def sparkline(values: list[float], width: int) -> str:
    """A bar for each value, or for the mean of several where there are more than `width`."""
    if not values:
        return ""
    cells = _thinned(values, width)
    low, high = min(cells), max(cells)
    span = (high - low) or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in cells)


def _thinned(values: list[float], width: int) -> list[float]:
    if len(values) <= width:
        return values
    edges = [round(n * len(values) / width) for n in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
