"""A run that is killed at any step and started again ends with the weights of one that was not."""

from __future__ import annotations

import hashlib
import random
import time
from typing import Any

import pytest
from conftest import Pod, sft_rows

STEPS = 40


def settings(pod: Pod, **changes: Any) -> dict[str, Any]:
    return {
        "data": {"source": pod.data("sft", sft_rows()), "evalFraction": 0.2},
        "globalBatchSize": 8,
        "microBatchSize": 2,
        "maxLength": 96,
        "learningRate": 1e-2,
        "maxSteps": STEPS,
        "epochs": 1000,
        "evalEverySteps": 4,
        "checkpointing": {"everySteps": 3},
        **changes,
    }


def kill_at_step(pod: Pod, run: Any, step: int, ranks: int, pause: float) -> None:
    """SIGKILL to all ranks once so many steps are logged, and a moment later."""
    file = pod.directory / run.output / "metrics.jsonl"
    started = pod.fork(run, ranks)
    while started.is_running and not (file.exists() and file.read_text().count("\n") >= step):
        time.sleep(0.003)
    time.sleep(pause)
    started.kill()
    assert not pod.output(run).exists(), "it was done before it could be killed"


def digest(pod: Pod, run: Any) -> str:
    return hashlib.sha256((pod.output(run) / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "kills", "changes"),
    [
        (1, 2, {}),
        (1, 1, {"lora": {"rank": 4, "dropout": 0.1}}),
        (2, 1, {"zero": {"stage": 3}}),
    ],
    ids=["one-rank", "lora", "two-ranks-zero-3"],
)
def test_a_killed_run_ends_with_the_same_weights(
    ranks: int, kills: int, changes: dict[str, Any], pod: Pod
) -> None:
    chosen = settings(pod, **changes)
    whole = pod.stage_run("sft", chosen, digest="222222222222")
    codes, log = pod.forked(whole, ranks)
    assert codes == [0] * ranks, log
    draw = random.Random(f"{ranks}{kills}{changes}")
    for attempt in range(1, kills + 1):
        run = pod.stage_run("sft", chosen, attempt=attempt)
        kill_at_step(pod, run, draw.randint(4, 12), ranks, draw.uniform(0, 0.05))
    last = pod.stage_run("sft", chosen, attempt=kills + 1)
    codes, log = pod.forked(last, ranks)
    assert codes == [0] * ranks, log
    assert "going on from step" in log
    assert digest(pod, last) == digest(pod, whole)
    assert pod.result()["metrics"]["eval/loss"] == pod.metrics(whole)[-1]["metrics"]["eval/loss"]
