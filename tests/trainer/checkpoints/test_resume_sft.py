"""A run that is killed at any step and started again ends with the weights of one that was not."""

from __future__ import annotations

from typing import Any

import pytest
from resuming import assert_killed_run_ends_with_the_same_weights, sft_settings
from trainer_pod import Pod

STEPS = 40


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
    chosen = sft_settings(pod, STEPS, **changes)
    seed = f"{ranks}{kills}{changes}"
    whole = assert_killed_run_ends_with_the_same_weights(pod, "sft", chosen, seed, ranks, kills)
    assert pod.result()["metrics"]["eval/loss"] == pod.metrics(whole)[-1]["metrics"]["eval/loss"]
