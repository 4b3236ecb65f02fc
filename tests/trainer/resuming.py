"""Kills a run at some step, goes on from it, and compares with a run that nobody killed."""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from collections.abc import Mapping
from typing import Any

from rlhf_api.run import StageRun
from trainer_pod import Pod, small_sft

TRIES = 4


def sft_settings(pod: Pod, steps: int, **changes: Any) -> dict[str, Any]:
    """SFT that is evaluated and saved often on its way."""
    long = {"maxSteps": steps, "epochs": 1000}
    often = {"evalEverySteps": 4, "checkpointing": {"everySteps": 3}}
    return small_sft(pod, **{**long, **often, **changes})


def digest(pod: Pod, run: StageRun) -> str:
    """SHA-256 of the weights that were handed on."""
    return hashlib.sha256((pod.output(run) / "model.safetensors").read_bytes()).hexdigest()


def kill_at_step(pod: Pod, run: StageRun, step: int, pause: float, ranks: int = 1) -> None:
    """SIGKILL to all ranks once so many steps are logged, and a moment later; anew where that was
    too late, as on a machine that has other work."""
    file = pod.directory / run.output / "metrics.jsonl"
    for _ in range(TRIES):
        started = pod.fork(run, ranks)
        while started.is_running and not (file.exists() and file.read_text().count("\n") >= step):
            time.sleep(0.003)
        time.sleep(pause)
        started.kill()
        if not pod.output(run).exists():
            return
        shutil.rmtree(pod.directory / run.output)
    raise AssertionError(f"it was done before it could be killed, {TRIES} times: {started.log}")


def assert_killed_run_ends_with_the_same_weights(
    pod: Pod, stage: str, chosen: Mapping[str, Any], seed: str, ranks: int = 1, kills: int = 1
) -> StageRun:
    """Of a stage of 40 steps or so, killed `kills` times; the run that nobody killed."""
    whole = pod.stage_run(stage, chosen, digest="222222222222")
    codes, log = pod.forked(whole, ranks)
    assert codes == [0] * ranks, log
    draw = random.Random(seed)
    for attempt in range(1, kills + 1):
        run = pod.stage_run(stage, chosen, attempt=attempt)
        kill_at_step(pod, run, draw.randint(4, 12), draw.uniform(0, 0.05), ranks)
    last = pod.stage_run(stage, chosen, attempt=kills + 1)
    codes, log = pod.forked(last, ranks)
    assert codes == [0] * ranks, log
    assert "going on from step" in log
    assert digest(pod, last) == digest(pod, whole)
    return whole
