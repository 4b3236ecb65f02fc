"""A run that goes on with another number of ranks follows the curve of one that nobody stopped."""

from __future__ import annotations

import time
from typing import Any

import pytest
from preference_stages import losses
from rlhf_trainer.stages import sft
from trainer_pod import Pod, sft_rows

STEPS = 30


def settings(pod: Pod, **changes: Any) -> dict[str, Any]:
    return {
        "data": {"source": pod.data("sft", sft_rows()), "evalFraction": 0.2},
        "globalBatchSize": 8,
        "microBatchSize": 2,
        "maxLength": 96,
        "learningRate": 1e-3,
        "weightDecay": 0.1,
        "maxSteps": STEPS,
        "epochs": 1000,
        "checkpointing": {"everySteps": 1000},
        **changes,
    }


def stop_after(pod: Pod, run: Any, steps: int, ranks: int) -> int:
    """SIGTERM once so many steps are logged: the step that was saved."""
    file = pod.directory / run.output / "metrics.jsonl"
    started = pod.fork(run, ranks)
    while started.is_running and not (file.exists() and file.read_text().count("\n") >= steps):
        time.sleep(0.003)
    started.terminate()
    assert started.wait() == [143] * ranks, started.log
    saved: int = pod.result()["step"]
    return saved


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        (2, 1, {}),
        (2, 1, {"zero": {"stage": 1}, "precision": "bf16"}),
        (2, 1, {"zero": {"stage": 2}, "lora": {"rank": 4}}),
        (1, 2, {"zero": {"stage": 2}}),
        (2, 1, {"zero": {"stage": 3}}),
        (1, 2, {"zero": {"stage": 3}}),
    ],
    ids=["zero-0", "zero-1-bf16", "zero-2-lora", "one-to-two", "zero-3", "zero-3-one-to-two"],
)
def test_the_curve_goes_on(
    before: int, after: int, changes: dict[str, Any], in_pod: Pod, open_session: Any
) -> None:
    chosen = settings(in_pod, **changes)
    whole = in_pod.stage_run("sft", chosen, digest="222222222222")
    sft.train(open_session(whole))
    saved = stop_after(in_pod, in_pod.stage_run("sft", chosen), 3, before)
    assert saved < STEPS
    again = in_pod.stage_run("sft", chosen, attempt=2)
    codes, log = in_pod.forked(again, after)
    assert codes == [0] * after, log
    assert f"going on from step {saved}" in log
    assert "it/s]" not in log  # DeepSpeed's bars
    tolerance = 2e-2 if changes.get("precision") == "bf16" else 2e-4
    assert losses(in_pod, again) == pytest.approx(losses(in_pod, whole)[saved:], abs=tolerance)
    assert not list((in_pod.directory / again.output).glob(".tmp-*"))
