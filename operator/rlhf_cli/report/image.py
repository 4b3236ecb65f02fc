"""Curves as one image, for slides and issues."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from rlhf_cli.report.curves import FEW, smoothed
from rlhf_cli.report.panels import STEP_NAMES
from rlhf_cli.report.records import Series

COLUMNS = 2
SIZE = (4.5, 2.8)  # inches of one panel


def write_image(file: Path, job: str, stage: str, lines: Mapping[str, Series]) -> None:
    """A panel for each metric; PNG or SVG by the file's name."""
    columns = min(COLUMNS, len(lines))
    rows = -(-len(lines) // columns)
    size = (SIZE[0] * columns, SIZE[1] * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    figure.suptitle(f"{job}: {stage}")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (metric, points) in zip(panels, lines.items(), strict=False):
        steps, values = [step for step, _ in points], [value for _, value in points]
        if len(points) <= FEW:
            axes.plot(steps, values, marker="o", markersize=3)
        else:
            axes.plot(steps, values, alpha=0.35, linewidth=0.8)
            axes.plot(steps, smoothed(values), color="C0")
        axes.set_title(metric, fontsize=9)
        axes.set_xlabel(STEP_NAMES.get(stage, "step"))
        axes.grid(alpha=0.3)
    for axes in list(figure.axes)[len(lines) :]:
        axes.set_visible(False)
    figure.savefig(file)
