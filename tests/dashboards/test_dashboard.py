"""The Grafana dashboard shows what the operator really has, in queries that Prometheus parses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from rlhf_operator.metrics import Metrics

Object = dict[str, Any]
REPOSITORY = Path(__file__).parents[2]
FILE = REPOSITORY / "dashboards/rlhf.json"
DASHBOARD: Object = json.loads(FILE.read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
SET_BY_PROMETHEUS = {"instance", "le", "namespace", "job"}


def every(metrics: Metrics) -> Iterator[tuple[Metric, set[str]]]:
    """Families and their labels."""
    for family in metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        collector = metrics.registry._names_to_collectors.get(name)
        labels = getattr(family, "_labelnames", None) or getattr(collector, "_labelnames", ())
        yield family, set(labels)


def series() -> dict[str, set[str]]:
    """Names of series as queries name them, with their labels."""
    found = {}
    for family, labels in every(Metrics()):
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
        for end in ends.get(family.type, [""]):
            found[family.name + end] = labels
    return found


def queries() -> list[str]:
    """Expressions of panels and of variables."""
    variables = [item["query"] for item in DASHBOARD["templating"]["list"]]
    return EXPRESSIONS + [item["query"] for item in variables if isinstance(item, dict)]


@pytest.mark.parametrize("query", queries())
def test_a_query_names_metrics_and_labels_that_the_operator_has(query: str) -> None:
    known = series()
    named = re.findall(r"\brlhf_\w+", query)
    assert named
    assert set(named) <= set(known)
    allowed = set().union(*(known[name] for name in named)) | SET_BY_PROMETHEUS
    matched = re.findall(r'(\w+)(?:=~|=)"', query)
    grouped = re.findall(r"(?:by|on) \(([^)]*)\)", query)
    labels = {*matched, *(label for group in grouped for label in re.split(r",\s*", group))}
    assert labels <= allowed


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_legend_names_labels_that_are_left(panel: Object) -> None:
    for target in panel["targets"]:
        grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
        left = {label for group in grouped for label in re.split(r",\s*", group)}
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= left


def test_every_metric_of_the_operator_is_shown() -> None:
    shown = " ".join(EXPRESSIONS)
    assert [f.name for f, _ in every(Metrics()) if not re.search(rf"\b{f.name}", shown)] == []


def test_prometheus_parses_every_query(program: Callable[[str], Path]) -> None:
    promtool = program("promtool")
    for expression in EXPRESSIONS:
        plain = expression.replace("$__rate_interval", "5m").replace("$__range", "1d")
        words = [promtool, "--experimental", "promql", "format", plain]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{plain}\n{done.stderr}"


def test_grafana_reads_every_field(program: Callable[[str], Path]) -> None:
    done = checked(program, FILE.read_text("utf-8"))
    assert done.returncode == 0, done.stderr


def test_a_field_that_grafana_does_not_know_is_found(program: Callable[[str], Path]) -> None:
    done = checked(program, FILE.read_text("utf-8").replace('"legendFormat"', '"legend"', 1))
    assert done.returncode == 1
    assert "legend" in done.stderr


def checked(program: Callable[[str], Path], dashboard: str) -> subprocess.CompletedProcess[str]:
    words = [program("dashboard-check")]
    return subprocess.run(words, input=dashboard, capture_output=True, text=True, check=False)


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_the_file_is_what_is_generated() -> None:
    words = [sys.executable, REPOSITORY / "dashboards/generate"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == (
        FILE.read_text("utf-8")
    )
