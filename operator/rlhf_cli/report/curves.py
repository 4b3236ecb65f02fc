"""Panels as SVG: text stays text, colours are the page's, the same input gives the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rlhf_cli.report.records import Series

SIZE: Final = (3.9, 2.15)  # inches; the page scales it to its column
TONES: Final = ("#010101", "#010102", "#010103")
INK, GRID = "#010104", "#010105"
COLOURS: Final = {tone: f"var(--tone-{n})" for n, tone in enumerate(TONES, 1)} | {
    INK: "var(--muted)",
    GRID: "var(--grid)",
}
"""Stand-ins that matplotlib can draw with, and the page's colours that replace them."""

STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 8.5,
    "path.simplify": True,
    "path.simplify_threshold": 0.5,
}
FEW: Final = 24
"""So few points are shown as they are, with markers; more get a smoothed line over the raw one."""


def curve(
    title: str, lines: Sequence[tuple[str, Series]], step_name: str, is_noisy: bool = True
) -> str:
    """One panel as an SVG element. `lines`: label and points of each curve."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for tone, (_, points) in zip(TONES, lines, strict=False):
            _draw(axes, points, tone, is_noisy)
        _label(axes, step_name)
        target = io.StringIO()
        FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None})
    return _inline(target.getvalue(), title)


def smoothed(values: Sequence[float]) -> list[float]:
    """Mean over about a fifteenth of the run around each point; symmetric, so that nothing lags."""
    half = len(values) // 30
    sums = [0.0, *accumulate(values)]
    result = []
    for here in range(len(values)):
        reach = min(half, here, len(values) - 1 - here)
        result.append((sums[here + reach + 1] - sums[here - reach]) / (2 * reach + 1))
    return result


def _draw(axes: Any, points: Series, tone: str, is_noisy: bool) -> None:
    steps = [step for step, _ in points]
    values = [value for _, value in points]
    if len(points) <= FEW:
        axes.plot(steps, values, color=tone, linewidth=1.6, marker="o", markersize=3)
    elif is_noisy:
        axes.plot(steps, values, color=tone, linewidth=0.7, alpha=0.35)
        axes.plot(steps, smoothed(values), color=tone, linewidth=1.6)
    else:
        axes.plot(steps, values, color=tone, linewidth=1.6)


def _label(axes: Any, step_name: str) -> None:
    axes.set_xlabel(step_name)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(length=0)
    low, high = axes.get_ylim()
    middle = max(abs(low), abs(high), 1e-12)
    if high - low < 1e-3 * middle:  # a constant: matplotlib would zoom into rounding errors
        axes.set_ylim(low - 0.1 * middle, high + 0.1 * middle)


def _tick(value: float, _: object) -> str:
    """2.5, 0.001, 1e-5, 9,600."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 12):g}"
    return re.sub(r"e([+-])0*", r"e\1", text).replace("e+", "e")


def _inline(svg: str, title: str) -> str:
    """The element alone, for use inside HTML: no addresses, no fonts, no unused ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r"font:\s*([\d.]+px)[^;\"]*", r"font: \1 var(--sans)", svg)
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, variable)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r'\sid="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(
        r"(<svg[^>]*?)\swidth=\"[^\"]*\"|(<svg[^>]*?)\sheight=\"[^\"]*\"", r"\1\2", svg, count=1
    )
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1).strip()
