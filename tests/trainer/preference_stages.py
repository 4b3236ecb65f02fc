"""What the tests of the reward and DPO stages share."""

from __future__ import annotations

from typing import Any

from trainer_pod import Pod


def losses(pod: Pod, run: Any) -> list[float]:
    """The training curve; of a step that was done twice, the last."""
    lines = [m for m in pod.metrics(run) if "train/loss" in m["metrics"]]
    return [
        loss for _, loss in sorted({m["step"]: m["metrics"]["train/loss"] for m in lines}.items())
    ]
