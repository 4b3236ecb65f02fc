"""MLflow and Weights & Biases, by their own libraries: a file store, and offline."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Container, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from rlhf_api.run import StageRun
from rlhf_trainer import trackers
from rlhf_trainer.ranks import Ranks
from rlhf_trainer.telemetry import Telemetry
from trainer_pod import Pod

SFT = {"data": {"source": "unused"}, "learningRate": 0.5}
NOBODY = "http://127.0.0.1:9"
PATIENCE = 120.0
"""Seconds."""


@pytest.fixture
def mlflow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Its library reads the process's environment, ours what it is given."""
    environment = {
        "MLFLOW_TRACKING_URI": (tmp_path / "mlflow").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


def report(run: StageRun, environment: dict[str, str], steps: range, total: int) -> None:
    """What a stage tells of some of its steps."""
    told = Telemetry(run, Ranks(), environment)
    for step in steps:
        told.log(step, {"train/loss": 1.0 / step, "train/lr": float("nan")})
        told.progress(step, total)
    told.close()


def test_mlflow_has_a_run_with_settings_and_metrics(
    in_pod: Pod, mlflow_store: dict[str, str]
) -> None:
    from mlflow import MlflowClient

    run = in_pod.stage_run("sft", SFT)
    report(run, mlflow_store, range(1, 3), total=4)
    client = MlflowClient()
    experiment = client.get_experiment_by_name(run.job.name)
    assert experiment
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "KILLED"
    assert found.data.params["learningRate"] == "0.5"
    assert found.data.params["hash"] == run.hash

    report(run.model_copy(update={"attempt": 2}), mlflow_store, range(2, 5), total=4)
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert {(item.step, item.value) for item in history} == {(n, 1.0 / n) for n in range(1, 5)}
    assert "train/lr" not in found.data.metrics


def test_weights_and_biases_writes_a_run_offline(
    in_pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    # What is written is tested here, not how soon its service ends beside other work.
    monkeypatch.setitem(trackers.WeightsAndBiases.SETTINGS, "finish_timeout", PATIENCE)
    monkeypatch.setattr(trackers, "END_SECONDS", PATIENCE)
    run = in_pod.stage_run("sft", SFT)
    report(run, {"WANDB_MODE": "offline"}, range(1, 4), total=3)
    (written,) = Path(run.output).glob("wandb/offline-run-*/run-*.wandb")
    # Its service is told that the run is over, not waited for: that happens as a process ends.
    words = (b"train/loss", b"learningRate", f"{run.job.name}-sft".encode())
    deadline = time.monotonic() + PATIENCE
    while missing := [word for word in words if word not in written.read_bytes()]:
        assert time.monotonic() < deadline, missing
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, []),
        ({"MLFLOW_TRACKING_URI": "http://mlflow"}, ["mlflow"]),
        ({"WANDB_API_KEY": "k"}, ["wandb"]),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, []),
        ({"WANDB_MODE": "offline"}, ["wandb"]),
    ],
)
def test_a_tracker_is_used_where_it_is_configured(
    environment: dict[str, str], expected: list[str]
) -> None:
    chosen = [name for name, kind in trackers.TRACKERS.items() if kind.is_configured(environment)]
    assert chosen == expected


UNREACHABLE = """
import json, sys, time
from rlhf_api.run import StageRun
from rlhf_trainer import trackers
from rlhf_trainer.ranks import Ranks
from rlhf_trainer.telemetry import Telemetry
trackers.END_SECONDS = 1.0
told = Telemetry(StageRun.model_validate(json.load(sys.stdin)), Ranks())
begun = time.monotonic()
for step in range(1, 101):
    told.log(step, {"train/loss": 1.0})
    told.progress(step, 100)
print(time.monotonic() - begun)
told.close()
"""


TWICE = """
import json, sys
from rlhf_api.run import StageRun
from rlhf_trainer.trackers import WeightsAndBiases
run = StageRun.model_validate(json.load(sys.stdin))
for _ in range(2):
    try:
        WeightsAndBiases(run, {})
    except Exception as error:
        print(type(error).__name__)
"""


@pytest.fixture(params=["refuses", "says nothing"])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of one that is of no use."""
    if request.param == "refuses":
        yield NOBODY
        return
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


def test_trackers_that_cannot_be_reached_stop_nothing(
    in_pod: Pod, tmp_path: Path, server: str
) -> None:
    run = in_pod.stage_run("sft", SFT)
    environment = {
        "MLFLOW_TRACKING_URI": server,
        "WANDB_BASE_URL": server,
        "WANDB_API_KEY": "0" * 40,
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", UNREACHABLE],
        input=json.dumps(run.to_dict()),
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,  # their libraries try again for longer
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one_answer = trackers.WeightsAndBiases.SETTINGS["x_graphql_timeout_seconds"]
    assert float(done.stdout.splitlines()[-1]) < one_answer  # of 100 steps none has waited for one
    assert len(in_pod.metrics(run)) == 100


class Fickle(trackers.MLflow):
    """A tracker whose calls are numbered; some of them fail."""

    calls: int
    failing: Container[int]
    taken: list[int]
    last: int  # step after which `is_done` is set
    is_done: threading.Event

    def __init__(self, *_: object) -> None:
        self._call()

    def log(self, report: trackers.Report) -> None:
        self._call()
        self.taken.append(report.step)
        if report.step == self.last:
            self.is_done.set()

    def end(self, is_done: bool) -> None:
        self._call()

    def _call(self) -> None:
        type(self).calls += 1
        if self.calls in self.failing:
            raise ConnectionError(f"call {self.calls}\nand a long story")


@pytest.fixture
def fickle(monkeypatch: pytest.MonkeyPatch) -> type[Fickle]:
    own = {"calls": 0, "failing": (), "taken": [], "last": 0, "is_done": threading.Event()}
    made = type("Made", (Fickle,), own)
    monkeypatch.setattr(trackers, "TRACKERS", {"mlflow": made})
    monkeypatch.setattr(trackers, "PAUSES", (0.0,))
    return made


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for record in caplog.records if "mlflow" in (text := record.getMessage())]


def test_a_tracker_that_was_not_there_gets_what_it_has_missed(
    fickle: type[Fickle], caplog: pytest.LogCaptureFixture
) -> None:
    fickle.failing, fickle.last = (1, 2, 3, 6, 7), 5
    thread = offered(fickle, steps=5)
    assert fickle.is_done.wait(PATIENCE)
    trackers.end_trackers([thread], is_done=True)
    assert fickle.taken == [1, 2, 3, 4, 5]
    assert told(caplog) == [
        "mlflow takes no reports for now: ConnectionError: call 1",
        "mlflow takes reports again",
        "mlflow takes no reports for now: ConnectionError: call 6",
        "mlflow takes reports again",
    ]


def offered(fickle: type[Fickle], steps: int) -> trackers.TrackerThread:
    thread = trackers.TrackerThread("mlflow", fickle)
    for step in range(1, steps + 1):
        thread.offer(trackers.Report(step, 0.0, {}))
    return thread


def test_one_report_that_a_tracker_refuses_holds_no_other_back(
    fickle: type[Fickle], caplog: pytest.LogCaptureFixture
) -> None:
    fickle.failing, fickle.last = range(3, 3 + trackers.MOST_TRIES), 3
    thread = offered(fickle, steps=3)
    assert fickle.is_done.wait(PATIENCE)
    trackers.end_trackers([thread], is_done=True)
    assert fickle.taken == [1, 3]
    assert told(caplog)[-1] == "mlflow has not got 1 of 3 reports"


def test_what_a_tracker_has_lost_is_told_at_the_end(
    in_pod: Pod,
    fickle: type[Fickle],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(trackers, "PAUSES", (PATIENCE,))
    fickle.failing = range(1, 100)
    report(in_pod.stage_run("sft", SFT), {"MLFLOW_TRACKING_URI": NOBODY}, range(1, 9), total=8)
    assert told(caplog) == [
        "mlflow takes no reports for now: ConnectionError: call 1",
        "mlflow has not got 8 of 8 reports",
    ]


def test_a_tracker_that_does_not_come_to_an_end_is_left(
    fickle: type[Fickle], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    has_come, may_end = threading.Event(), threading.Event()

    def end(*_: object) -> None:
        has_come.set()
        may_end.wait(PATIENCE)

    monkeypatch.setattr(fickle, "end", end)
    thread = offered(fickle, steps=2)
    thread.end(is_done=True)
    assert has_come.wait(PATIENCE)
    thread.wait(0.0)
    may_end.set()
    assert told(caplog) == ["mlflow has not ended its run; the stage ends without"]


def test_no_more_reports_wait_than_there_is_room_for(
    fickle: type[Fickle], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    may_begin = threading.Event()

    def begin() -> Fickle:
        may_begin.wait(PATIENCE)
        return fickle()

    monkeypatch.setattr(trackers, "MOST_WAITING", 2)
    thread = trackers.TrackerThread("mlflow", begin)
    for step in range(1, 6):
        thread.offer(trackers.Report(step, 0.0, {}))
    may_begin.set()
    trackers.end_trackers([thread], is_done=True)
    assert fickle.taken == [1, 2]
    assert told(caplog) == ["mlflow has not got 3 of 5 reports"]


def test_weights_and_biases_can_be_begun_again_after_a_failure(in_pod: Pod, tmp_path: Path) -> None:
    run = in_pod.stage_run("sft", SFT)
    given = {"WANDB_BASE_URL": NOBODY, "WANDB_API_KEY": "0" * 40, "HOME": str(tmp_path)}
    # A service that another test has started here would be taken.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", TWICE],
        input=json.dumps(run.to_dict()),
        env=clean | given,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout.splitlines() == ["CommError", "CommError"], done.stderr


def test_the_end_of_an_attempt_waits_for_all_trackers_together(
    in_pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(trackers.MLflow):
        def __init__(self, *_: object) -> None:
            may_begin.wait(PATIENCE)

        @staticmethod
        def is_configured(environment: trackers.Environment) -> bool:
            return True

    monkeypatch.setattr(trackers, "TRACKERS", {"mlflow": Slow, "wandb": Slow})
    waited: list[float] = []
    may_begin, now = threading.Event(), 1000.0

    def wait(_: trackers.TrackerThread, seconds: float) -> None:
        nonlocal now
        waited.append(seconds)
        now += seconds

    monkeypatch.setattr(trackers.TrackerThread, "wait", wait)
    monkeypatch.setattr(trackers, "time", SimpleNamespace(monotonic=lambda: now))
    for total in (3, 4):
        report(in_pod.stage_run("sft", SFT), {}, range(1, 4), total)
    may_begin.set()
    assert waited == [trackers.END_SECONDS, 0.0, trackers.STOP_SECONDS, 0.0]
