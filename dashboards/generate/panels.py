"""Panels of a Grafana dashboard, in the classic JSON form; 24 columns wide."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import Any, Final, NamedTuple

Object = dict[str, Any]
WIDTH: Final = 24
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
LEGEND: Final = {"displayMode": "list", "placement": "bottom", "calcs": []}
BARS: Final = {
    "orientation": "horizontal",
    "displayMode": "basic",
    "valueMode": "color",
    "namePlacement": "auto",
    "showUnfilled": True,
    "sizing": "auto",
    "minVizWidth": 8,
    "minVizHeight": 16,
    "maxVizHeight": 300,
    "legend": LEGEND | {"showLegend": False},
}
NUMBER: Final = {
    "colorMode": "value",
    "graphMode": "none",
    "justifyMode": "auto",
    "textMode": "auto",
    "orientation": "auto",
    "wideLayout": True,
    "showPercentChange": False,
    "percentChangeColorMode": "standard",
}


class Query(NamedTuple):
    """PromQL, and the name of each series."""

    expression: str
    legend: str = ""
    instant: bool = False


class Panel(NamedTuple):
    """What is shown, and how large; `unit` is one of Grafana's names of units."""

    title: str
    text: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    thresholds: tuple[tuple[float | None, str], ...] = ((None, "green"),)

    def json(self, number: int, x: int, y: int) -> Object:
        """The panel at a place."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.text,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [
                self._target(query, ref) for query, ref in zip(self.queries, "ABCD", strict=False)
            ],
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": self._options(),
        }

    def _target(self, query: Query, ref: str) -> Object:
        return {
            "refId": ref,
            "datasource": DATASOURCE,
            "expr": query.expression,
            "legendFormat": query.legend or "__auto",
            "instant": query.instant,
            "range": not query.instant,
        }

    def _defaults(self) -> Object:
        steps = [{"color": color, "value": value} for value, color in self.thresholds]
        made: Object = {"unit": self.unit, "thresholds": {"mode": "absolute", "steps": steps}}
        if self.kind == "timeseries":
            stacking = {"mode": "normal" if self.stacked else "none", "group": "A"}
            made["custom"] = {
                "drawStyle": "line",
                "lineWidth": 1,
                "fillOpacity": 30 if self.stacked else 0,
                "showPoints": "never",
                "spanNulls": False,
                "stacking": stacking,
            }
        return made

    def _options(self) -> Object:
        if self.kind == "timeseries":
            return {
                "legend": LEGEND | {"showLegend": True},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        reduced = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
        return reduced | (BARS if self.kind == "bargauge" else NUMBER)


class Row(NamedTuple):
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


def placed(rows: Iterable[Row]) -> list[Object]:
    """All panels, from left to right and from top to bottom."""
    numbers, made, y = count(1), list[Object](), 0
    for row in rows:
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        made.append(_heading(row.title, next(numbers), place))
        x, y, height = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y, height = 0, y + height, 0
            made.append(panel.json(next(numbers), x, y))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return made


def _heading(title: str, number: int, place: Object) -> Object:
    made: Object = {"id": number, "type": "row", "title": title, "gridPos": place}
    return made | {"collapsed": False, "panels": []}
