"""Which weights are the best so far."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rlhf_trainer.supervised import _after_evaluation, _Progress

NAN, INF = float("nan"), float("inf")


def best_after(*losses: float) -> tuple[Any, list[int]]:
    """Progress after evaluations at steps 1, 2, … of 9, and the steps whose weights were kept."""
    kept: list[int] = []
    session: Any = SimpleNamespace(
        checkpointer=SimpleNamespace(keep_weights=lambda step, write: kept.append(step))
    )
    task: Any = SimpleNamespace(total_steps=9)
    config: Any = SimpleNamespace(keep_best=True)
    progress = _Progress(None, None, {})
    for step, loss in enumerate(losses, start=1):
        metrics = {"eval/loss": loss}
        progress = _after_evaluation(
            session, config, task, progress, step, metrics, lambda directory: Path(directory)
        )
    return progress, kept


def test_the_lowest_loss_is_the_best_and_the_first_of_equals() -> None:
    progress, kept = best_after(3.0, 2.0, 2.0, 2.5)
    assert (progress.best_step, progress.best, kept) == (2, 2.0, [1, 2])


@pytest.mark.parametrize("broken", [NAN, INF, -INF])
def test_what_is_not_finite_is_never_the_best(broken: float) -> None:
    progress, kept = best_after(broken)
    assert (progress.best_step, kept) == (None, [])
    progress, kept = best_after(broken, 2.0, broken)
    assert (progress.best_step, progress.metrics, kept) == (2, {"eval/loss": 2.0}, [2])
