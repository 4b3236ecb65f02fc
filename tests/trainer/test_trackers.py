"""MLflow and Weights & Biases, by their own libraries: a file store, and offline."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

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
    # What is written is tested here, not how soon its service starts beside other work.
    for name in ("init_timeout", "finish_timeout"):
        monkeypatch.setitem(trackers.WeightsAndBiases.SETTINGS, name, PATIENCE)
    monkeypatch.setattr(trackers, "END_SECONDS", PATIENCE)
    run = in_pod.stage_run("sft", SFT)
    report(run, {"WANDB_MODE": "offline"}, range(1, 4), total=3)
    (written,) = Path(run.output).glob("wandb/offline-run-*/run-*.wandb")
    content = written.read_bytes()
    for word in (b"train/loss", b"learningRate", f"{run.job.name}-sft".encode()):
        assert word in content


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
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", UNREACHABLE],
        input=json.dumps(run.to_dict()),
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 2
    assert time.monotonic() - begun < 40
    assert len(in_pod.metrics(run)) == 100


def test_a_tracker_that_breaks_says_so_once_and_is_left(
    in_pod: Pod, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(trackers.MLflow):
        def __init__(self, *_: object) -> None: ...

        def log(self, report: trackers.Report) -> None:
            raise RuntimeError(f"no step {report.step}\nand a long story")

    monkeypatch.setattr(trackers, "TRACKERS", {"mlflow": Broken})
    report(in_pod.stage_run("sft", SFT), {"MLFLOW_TRACKING_URI": NOBODY}, range(1, 9), total=8)
    said = [record.getMessage() for record in caplog.records if "mlflow" in record.getMessage()]
    assert said == ["mlflow gets no more reports: RuntimeError: no step 1"]


def test_the_end_of_an_attempt_waits_for_all_trackers_together(
    in_pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(trackers.MLflow):
        def __init__(self, *_: object) -> None:
            time.sleep(60)

        @staticmethod
        def is_configured(environment: trackers.Environment) -> bool:
            return True

    monkeypatch.setattr(trackers, "TRACKERS", {"mlflow": Slow, "wandb": Slow})
    monkeypatch.setattr(trackers, "END_SECONDS", 2.0)
    monkeypatch.setattr(trackers, "STOP_SECONDS", 0.5)
    for total, limit in ((3, 2.0), (4, 0.5)):
        begun = time.monotonic()
        report(in_pod.stage_run("sft", SFT), {}, range(1, 4), total)
        assert limit <= time.monotonic() - begun < limit + 1
