"""The progress server, spoken to as transformers' KubeflowCallback speaks."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from rlhf_operator.local.progress_server import LoopbackServer
from rlhf_operator.progress import parse_report

PATH = "/namespaces/default/rlhfjobs/tiny/ppo/3"


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    made = LoopbackServer()
    yield made
    made.close()


def post(
    server: LoopbackServer, status: dict[str, Any] | bytes, token: str = "", path: str = PATH
) -> int:
    data = status if isinstance(status, bytes) else json.dumps({"trainerStatus": status}).encode()
    headers = {"Authorization": f"Bearer {token or server.token}"}
    request = urllib.request.Request(server.url + path, data=data, headers=headers, method="POST")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_report_is_kept_by_stage_and_attempt(server: LoopbackServer) -> None:
    metrics = [{"name": "ppo/kl", "value": "0.25"}]
    report = {
        "progressPercentage": 40,
        "estimatedRemainingSeconds": 90,
        "metrics": metrics,
        "lastUpdatedTime": "2026-01-31T12:00:00+00:00",
    }
    assert post(server, report) == 200
    kept = server.reports()["ppo", 3]
    assert (kept.percent, kept.remaining_seconds) == (40.0, 90.0)
    assert kept.metrics == {"ppo/kl": 0.25}


def test_metrics_of_earlier_reports_stay(server: LoopbackServer) -> None:
    post(server, {"metrics": [{"name": "a", "value": "1"}]})
    post(server, {"metrics": [{"name": "b", "value": "2"}]})
    assert server.reports()["ppo", 3].metrics == {"a": 1.0, "b": 2.0}


def test_another_token_is_refused(server: LoopbackServer) -> None:
    assert post(server, {"progressPercentage": 40}, token="guess") == 401
    assert server.reports() == {}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"trainerStatus": 3}', b'{"trainerStatus": {"metrics": [{"name": "a"}]}}'],
)
def test_what_is_no_report_is_refused(server: LoopbackServer, body: bytes) -> None:
    assert post(server, body) == 400
    assert server.reports() == {}


def test_a_report_to_no_attempt_is_refused(server: LoopbackServer) -> None:
    assert post(server, {"progressPercentage": 40}, path="/ppo/latest") == 400


def test_a_huge_body_is_refused(server: LoopbackServer) -> None:
    assert post(server, b" " * (64 * 1024 + 1)) == 413


def test_numbers_that_are_none_are_left_out() -> None:
    report = parse_report(
        b'{"trainerStatus": {"progressPercentage": 400, "estimatedRemainingSeconds": "soon",'
        b' "metrics": [{"name": "loss", "value": "nan"}, {"name": "kl", "value": "1e-3"}]}}'
    )
    assert report is not None
    assert (report.percent, report.remaining_seconds) == (100.0, None)
    assert report.metrics == {"kl": 0.001}


def test_transformers_own_callback_is_understood(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    integrations = pytest.importorskip("transformers.integrations.integration_utils")
    token = tmp_path / "token"
    token.write_text(server.token)
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", server.url + PATH)
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(token))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    callback = integrations.KubeflowCallback()
    assert callback._update_status(12, 34, {"loss": 0.5}, force=True)
    kept = server.reports()["ppo", 3]
    assert (kept.percent, kept.remaining_seconds, kept.metrics) == (12.0, 34.0, {"loss": 0.5})
