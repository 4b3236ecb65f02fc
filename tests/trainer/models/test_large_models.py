"""ZeRO-3 trains models that no device holds whole: nothing gathers, moves or writes one at once."""

from __future__ import annotations

from typing import Any

import pytest
import small_device
from forked import ForkedRun
from trainer_pod import Pod, free_port, pair_rows, small_sft

PAIRS = {
    "globalBatchSize": 5,
    "microBatchSize": 1,
    "maxLength": 96,
    "maxSteps": 3,
    "learningRate": 1e-3,
}


def settings(pod: Pod, stage: str) -> dict[str, Any]:
    if stage == "sft":
        return small_sft(pod, maxSteps=3)
    return {"data": {"source": pod.data("pairs", pair_rows()), "evalFraction": 0.2}, **PAIRS}


def trained(pod: Pod, stage: str, body: Any, changes: dict[str, Any]) -> tuple[Any, str]:
    """The stage on two ranks, each body in a lineage of its own."""
    chosen = settings(pod, stage) | {"zero": {"stage": 3}} | changes
    run = pod.stage_run(stage, chosen, digest="5ma11" if body else "1arge")
    pod.write(run)
    started = ForkedRun(pod.directory, 2, free_port(), body)
    codes, log = started.wait(), started.log
    assert codes == [0, 0], log
    return run, log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("sft", {}),
        ("reward", {}),
        ("dpo", {}),
        ("dpo", {"referenceCache": False}),
        ("dpo", {"referenceCache": False, "lora": {"rank": 2}}),
        ("dpo", {"loss": "kto", "referenceCache": False}),
    ],
    ids=["sft", "reward", "dpo", "frozen", "frozen-lora", "kto-frozen"],
)
def test_a_stage_ends_with_the_same_output_where_no_device_holds_the_model(
    stage: str, changes: dict[str, Any], pod: Pod
) -> None:
    from rlhf_trainer.checkpoints.vouched import verify

    run, log = trained(pod, stage, small_device.stage, changes)
    found = verify(pod.output(run))["files"]
    assert ("eval/kl" in log) == (stage == "dpo")  # that alone needs a whole one, and says so
    whole, _ = trained(pod, stage, None, changes)
    assert verify(pod.output(whole))["files"] == found
