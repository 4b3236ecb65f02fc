"""What the tests of the reward and DPO stages share."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from conftest import Pod


def losses(pod: Pod, run: Any) -> list[float]:
    """The training curve; of a step that was done twice, the last."""
    lines = [m for m in pod.metrics(run) if "train/loss" in m["metrics"]]
    return [
        loss for _, loss in sorted({m["step"]: m["metrics"]["train/loss"] for m in lines}.items())
    ]


def digest(pod: Pod, run: Any) -> str:
    """SHA-256 of the weights that were handed on."""
    return hashlib.sha256((pod.output(run) / "model.safetensors").read_bytes()).hexdigest()


def kill_at_step(pod: Pod, run: Any, step: int, pause: float) -> None:
    """SIGKILL once so many steps are logged, and a moment later."""
    file = pod.directory / run.output / "metrics.jsonl"
    started = pod.fork(run, 1)
    while started.is_running and not (file.exists() and file.read_text().count("\n") >= step):
        time.sleep(0.003)
    time.sleep(pause)
    started.kill()
    assert not pod.output(run).exists(), "it was done before it could be killed"
