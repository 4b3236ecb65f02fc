"""A real training on this machine, from one terminal; what is seen and done from another."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from a_run_here import RunHere
from cluster_jobs import wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 60


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> RunHere:
    """SFT of the quickstart's model, in small steps of which each is saved."""
    folder = tmp_path_factory.mktemp("training")
    made = RunHere(folder, {**os.environ, "OMP_NUM_THREADS": "1"})
    shutil.copytree(EXAMPLES / "base-model", folder / "base-model")
    rows = (EXAMPLES / "data/sft.jsonl").read_text().splitlines(keepends=True)[:200]
    (folder / "sft.jsonl").write_text("".join(rows))
    manifest = yaml.safe_load((EXAMPLES / "quickstart.yaml").read_text())
    manifest["metadata"]["name"] = "small"
    spec = manifest["spec"]
    del spec["evaluation"]
    sft = {"maxSteps": STEPS, "epochs": 20, "checkpointing": {"everySteps": 1}}
    sft |= {"globalBatchSize": 8, "microBatchSize": 8}
    spec["stages"] = {"sft": spec["stages"]["sft"] | sft | {"data": {"source": "sft.jsonl"}}}
    (folder / "job.yaml").write_text(yaml.safe_dump(manifest))
    return made


@contextmanager
def halted(training: RunHere, pod: str) -> Iterator[int]:
    """Its trainer, a process that stands still however long others take to look at it."""
    shim = json.loads((training.directory / "pods" / pod / "process.json").read_text())["pid"]
    (trainer,) = map(int, Path(f"/proc/{shim}/task/{shim}/children").read_text().split())
    os.kill(trainer, signal.SIGSTOP)
    try:
        yield trainer
    finally:
        os.kill(trainer, signal.SIGCONT)


def is_told_to_end(process: int) -> bool:
    """Whether SIGTERM waits for a process that stands still."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    pending = next(line.split()[1] for line in lines if line.startswith("ShdPnd"))
    return bool(int(pending, 16) & 1 << signal.SIGTERM - 1)


def test_data_that_is_mended_is_tried_again_and_seen_from_another_terminal(
    training: RunHere,
) -> None:
    data = training.folder / "sft.jsonl"
    rows = data.read_text()
    data.write_text(rows + '{"prompt": "Hello"}\n')
    said = training.rlhfctl("run", "job.yaml", "--dir", "run", code=64)
    assert "sft.jsonl:201" in said
    data.write_text(rows)
    process = training.start("retry", "--dir", "run")
    wait_until(lambda: training.stage("sft").get("saved"), timeout=300)
    with halted(training, "small-sft-1-0") as trainer:
        follower = training.start("logs", "-f", "--rank", "0", "--dir", "run")
        watcher = training.start("watch", "--dir", "run")
        looks = {name: training.start(name, "--dir", "run") for name in ("describe", "events")}
        looks["get"] = training.start("get", "--dir", "run", "-o", "json")
        said = {name: training.finish(look) for name, look in looks.items()}
        assert "Running" in said["describe"]
        assert "CheckpointSaved" in said["events"]
        assert json.loads(said["get"])["status"]["phase"] == "Running"
        suspending = training.start("suspend", "--wait", "--timeout", "300s", "--dir", "run")
        wait_until(lambda: is_told_to_end(trainer))
    assert training.finish(suspending).endswith("have ended.\n")
    training.finish(process, 143)
    assert f"step 1/{STEPS}" in training.finish(follower)
    assert "SFT" in training.finish(watcher, 75)
    assert training.condition("Suspended") == ("True", "Interrupted")
    assert "Suspended" in training.rlhfctl("list", "./")
    assert "Suspended" in training.here("status")


def test_it_goes_on_from_where_it_was_suspended(training: RunHere) -> None:
    saved = training.stage("sft")["saved"]["step"]
    assert 0 < saved < STEPS
    assert "Report:" in training.here("resume")
    assert training.stage("sft")["attempt"] == 2
    first, second = steps(training, 1), steps(training, 2)
    assert first[0] == 1
    assert second == list(range(first[-1] + 1, STEPS + 1))


def steps(training: RunHere, attempt: int) -> list[int]:
    """That an attempt has recorded."""
    (file,) = training.directory.glob(f"volumes/*/small-*/sft-*/attempt-{attempt}/metrics.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted({row["step"] for row in rows if "train/loss" in row["metrics"]})


def test_its_results_are_shown_and_taken_elsewhere(training: RunHere) -> None:
    assert f"at step {STEPS}" in training.here("plot", "-m", "train/loss")
    assert training.here("report", "--out", "report.html") == "report.html\n"
    assert "<svg" in (training.folder / "report.html").read_text()
    assert training.here("fetch", "--out", "model") == "model\n"
    assert (training.folder / "model/model.safetensors").stat().st_size > 1000
    assert "no stage of small has failed" in training.here("retry", code=64)
    assert "needs no approval" in training.rlhfctl("approve", "sft", "--dir", "run", code=64)


def test_it_is_deleted_and_its_data_stays(training: RunHere) -> None:
    training.here("delete", "--checkpoints", "--yes")
    assert not training.directory.exists()
    assert (training.folder / "sft.jsonl").exists()
