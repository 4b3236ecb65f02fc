"""The alerts: Prometheus' own tool takes them, each is fired, and each has its section."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import CHART, REPOSITORY, Helm
from rlhf_operator.job_gauges import collect_from
from rlhf_operator.metrics import Metrics

ALERTS = CHART / "files" / "alerts.yaml"
CASES = Path(__file__).with_name("alerts_test.yaml")
PAGE = REPOSITORY / "docs" / "guides" / "alerts.md"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
]
OF_RULES = [pytest.param(rule, id=rule["alert"]) for rule in RULES]


@pytest.fixture
def promtool(program: Callable[[str], Path], tmp_path: Path) -> Callable[..., None]:
    def run(*words: str | Path) -> None:
        command = [program("promtool"), *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stdout + done.stderr

    return run


def test_prometheus_finds_nothing_wrong_with_the_rules(promtool: Callable[..., None]) -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", ALERTS)


def test_each_alert_fires_when_it_should_and_not_before(
    promtool: Callable[..., None], tmp_path: Path
) -> None:
    bare = [{name: rule[name] for name in rule if name != "annotations"} for rule in RULES]
    rules = {"groups": [{"name": "all", "rules": bare}]}
    (tmp_path / ALERTS.name).write_text(yaml.safe_dump(rules))
    (tmp_path / CASES.name).write_bytes(CASES.read_bytes())
    promtool("test", "rules", CASES.name)


def test_no_alert_is_without_a_case_that_fires_it() -> None:
    checks = [
        check
        for case in yaml.safe_load(CASES.read_text())["tests"]
        for check in case["alert_rule_test"]
    ]
    fired = {check["alertname"] for check in checks if check["exp_alerts"]}
    assert fired == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("rule", OF_RULES)
def test_an_alert_reads_metrics_that_there_are(rule: dict[str, Any]) -> None:
    families = [*Metrics().registry.collect(), *collect_from([])]
    known = {family.name + end for family in families for end in ("", "_total", "_count")}
    read = set(re.findall(r"rlhf_\w+", rule["expr"]))
    assert read
    assert read <= known


@pytest.mark.parametrize("rule", OF_RULES)
def test_an_alert_links_to_a_section_that_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["annotations"]["runbook_url"] == f"docs/guides/alerts.md#{rule['alert'].lower()}"
    assert f"\n## {rule['alert']}\n" in PAGE.read_text(encoding="utf-8")


def test_the_rules_reach_prometheus_as_they_are_with_links_to_where_the_page_is(helm: Helm) -> None:
    there = "https://docs.example/alerts"
    values = {"prometheus": {"prometheusRule": {"enabled": True, "runbookUrl": there}}}
    spec = helm.render(values).one("PrometheusRule")["spec"]
    text = ALERTS.read_text().replace("docs/guides/alerts.md", there)
    assert spec == yaml.safe_load(text)
    assert spec["groups"][0]["rules"][0]["annotations"]["runbook_url"].startswith(there)
