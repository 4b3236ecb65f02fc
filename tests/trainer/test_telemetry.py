"""What a run reports: metrics.jsonl, the progress protocol, lines in the log."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rlhf_trainer import telemetry
from rlhf_trainer.ranks import Ranks
from rlhf_trainer.telemetry import ProgressPoster, Telemetry, progress_body, progress_line
from trainer_pod import Pod

SFT = {"data": {"source": "unused"}}


class Operator:
    """A server that keeps the progress reports it gets."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], Any]] = []
        self.answer = 200
        self.answers = threading.Event()
        self.answers.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append((dict(self.headers), json.loads(body)))
                outer._told.set()
                outer.answers.wait(120)
                self.send_response(outer.answer)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self._told = threading.Event()
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/progress"

    def wait_for_one(self) -> None:
        """Until the first report is there."""
        assert self._told.wait(120)


@pytest.fixture
def operator() -> Iterator[Operator]:
    started = Operator()
    yield started
    started.server.shutdown()
    started.server.server_close()


def environment(operator: Operator, token: Path) -> dict[str, str]:
    token.write_text("secret\n")
    return {
        "KUBEFLOW_TRAINER_SERVER_URL": operator.url,
        "KUBEFLOW_TRAINER_SERVER_TOKEN": str(token),
    }


def test_metrics_are_one_json_object_a_line_and_nan_is_null(in_pod: Pod) -> None:
    run = in_pod.stage_run("sft", SFT)
    told = Telemetry(run, Ranks(), {})
    told.log(1, {"train/loss": 2.5})
    told.log(2, {"train/loss": float("nan")})
    told.close()
    first, second = in_pod.metrics(run)
    assert (first["step"], first["metrics"]) == (1, {"train/loss": 2.5})
    assert first["time"] > 1.7e9
    assert second["metrics"] == {"train/loss": None}
    assert set(first) == {"step", "time", "metrics"}


def test_other_ranks_write_nothing(in_pod: Pod) -> None:
    run = in_pod.stage_run("sft", SFT)
    told = Telemetry(run, Ranks(rank=1, world_size=2), {})
    told.log(1, {"train/loss": 2.5})
    told.progress(1, 2)
    told.close()
    assert not (Path(run.output) / "metrics.jsonl").exists()


def test_progress_is_posted_as_kubeflows_callback_does(
    in_pod: Pod, operator: Operator, tmp_path: Path
) -> None:
    run = in_pod.stage_run("sft", SFT)
    told = Telemetry(run, Ranks(), environment(operator, tmp_path / "token"))
    told.log(1, {"train/loss": 2.5})
    for step in (1, 2, 3, 4):  # the first and the end: what is between comes within 5 seconds
        told.progress(step, 4)
        told.saved(step)
        operator.wait_for_one()  # a report that nobody has fetched gives way to a newer one
    told.close()
    headers, first = operator.requests[0]
    _, last = operator.requests[-1]
    assert len(operator.requests) == 2
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Content-Type"] == "application/json"
    status = first["trainerStatus"]
    assert set(status) <= {
        "lastUpdatedTime", "progressPercentage", "estimatedRemainingSeconds", "metrics",
    }  # fmt: skip
    assert status["progressPercentage"] == 25
    assert {"name": "train/loss", "value": "2.5"} in status["metrics"]
    assert {"name": "total_steps", "value": "4"} in status["metrics"]
    assert {"name": "checkpoint/step", "value": "3"} in last["trainerStatus"]["metrics"]
    assert last["trainerStatus"]["progressPercentage"] == 100
    assert last["trainerStatus"]["estimatedRemainingSeconds"] == 0


def test_the_body_is_what_transformers_callback_sends(
    operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installed package's own callback, asked to report the same, sends the same."""
    from transformers.integrations.integration_utils import KubeflowCallback

    for name, value in environment(operator, tmp_path / "token").items():
        monkeypatch.setenv(name, value)
    metrics = {"train/loss": 2.5, "current_step": 1, "total_steps": 4}
    assert KubeflowCallback()._update_status(25, 30, metrics, force=True)
    theirs = operator.requests[0][1]["trainerStatus"]
    ours = json.loads(progress_body(1, 4, 30.4, {"train/loss": 2.5}))["trainerStatus"]
    assert theirs.pop("lastUpdatedTime")[:16] == ours.pop("lastUpdatedTime")[:16]
    assert ours == theirs


def test_only_the_end_is_100_percent() -> None:
    body = json.loads(progress_body(999, 1000, None, {}))["trainerStatus"]
    assert body["progressPercentage"] == 99
    assert "estimatedRemainingSeconds" not in body


def test_a_server_that_fails_is_counted_and_never_raises(
    operator: Operator, tmp_path: Path
) -> None:
    operator.answer = 500
    poster = ProgressPoster.from_environment(environment(operator, tmp_path / "token"))
    assert poster is not None
    poster.offer(4, 4, 0, {})
    poster.close()
    assert poster.failures == 1
    gone = ProgressPoster("http://127.0.0.1:9/", str(tmp_path / "no-token"), None)
    gone.offer(4, 4, 0, {})
    gone.close()
    assert gone.failures == 1


def test_a_server_that_hangs_holds_up_no_step_and_hears_the_newest_when_it_is_back(
    operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "POST_INTERVAL", 0.0)
    operator.answers.clear()
    poster = ProgressPoster.from_environment(environment(operator, tmp_path / "token"))
    assert poster is not None
    poster.offer(0, 100, None, {})
    operator.wait_for_one()
    for step in range(1, 101):  # it answers only after that
        poster.offer(step, 100, None, {})
    operator.answers.set()
    poster.close()
    told = [body["trainerStatus"]["progressPercentage"] for _, body in operator.requests]
    assert told in ([0, 99, 100], [0, 100])


def test_an_answer_that_is_no_http_does_not_end_the_reports(
    operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a proxy that is being restarted."""
    monkeypatch.setattr(telemetry, "POST_INTERVAL", 0.0)
    operator.answer = 99
    poster = ProgressPoster.from_environment(environment(operator, tmp_path / "token"))
    assert poster is not None
    poster.offer(1, 10, None, {})
    operator.wait_for_one()
    poster.offer(2, 10, None, {})
    poster.close()
    assert (len(operator.requests), poster.failures) == (2, 2)


def test_without_the_variable_or_when_disabled_nothing_is_posted(operator: Operator) -> None:
    assert ProgressPoster.from_environment({}) is None
    off = {"KUBEFLOW_TRAINER_SERVER_URL": operator.url, "DISABLE_KUBEFLOW_INTEGRATION": "TRUE"}
    assert ProgressPoster.from_environment(off) is None


def test_lines_are_short_and_say_where_it_stands() -> None:
    metrics = {"train/loss": 2.3123, "train/lr": 1e-4, "eval/loss": 2.0}
    assert progress_line("sft", 120, 400, metrics, 42.4) == (
        "sft  step 120/400  loss 2.31  lr 1e-04  eta 0:42"
    )
    assert progress_line("ppo", 3, 3, {"ppo/reward": 1.0, "ppo/kl": 0.5}, 0.0) == (
        "ppo  step 3/3  reward 1  kl 0.5"
    )
    assert progress_line("sft", 1, 9, {}, 3700) == "sft  step 1/9  eta 1:01:40"


def test_lines_come_every_two_seconds_or_tenth(
    in_pod: Pod, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import logging

    monkeypatch.setattr(logging.getLogger("rlhf_trainer"), "propagate", True)
    caplog.set_level(logging.INFO)
    clock = iter(range(10_000))
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: next(clock) * 0.001)
    told = Telemetry(in_pod.stage_run("sft", SFT), Ranks(), {})
    for step in range(1, 101):
        told.progress(step, 100)
    told.close()
    assert 10 <= len(caplog.messages) <= 13
    assert caplog.messages[-1].startswith("sft  step 100/100")
