"""The loop that SFT, reward model and DPO share: steps, evaluation, checkpoints, best and last.

A stage's task says what is in a step and what its loss is; the loop does the rest.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from rlhf_api.run import MANIFEST, ExitCode, StageResult
from rlhf_api.stages.common import Supervised
from rlhf_api.status import CheckpointRef
from torch import Tensor

from rlhf_trainer.engine import Engine
from rlhf_trainer.errors import Terminated
from rlhf_trainer.peak_memory import PeakMemory
from rlhf_trainer.session import Session
from rlhf_trainer.task import StepBatch, Task

BEST_BY: Final = "eval/loss"
"""The metric that says which weights are best; the lowest is."""
AnyTask = Task[Any, Any, Any]
log = logging.getLogger(__name__)


class Fitted(NamedTuple):
    """How the loop ended."""

    step: int
    metrics: dict[str, float]  # of the weights that are handed on
    kept: Path | None  # the weights that are handed on; None: the last ones


def is_due(step: int, every: int | None, total: int, parts: int) -> bool:
    """Whether something that happens each `every` steps (default: a `parts`-th of all) is due."""
    return step % (every or max(1, math.ceil(total / parts))) == 0


def fit(
    session: Session,
    engine: Engine,
    task: AnyTask,
    write: Callable[[Path], None],
) -> Fitted:
    """Train from the newest checkpoint to the last step.

    `write` saves the model in a directory; it is called on every rank.
    """
    config = session.config
    assert isinstance(config, Supervised)
    progress = _Progress(best_step=None, best=None, metrics={})
    memory = PeakMemory(session.ranks)
    restored = session.checkpointer.restore({"model": engine})
    step = 0 if restored is None else restored.step
    if restored is not None:
        progress = _Progress(**restored.state)
        session.telemetry.saved(step)
    while step < task.total_steps:
        metrics = _train_step(session, engine, task, step) | memory.of_phase("train")
        step += 1
        if is_due(step, config.eval_every_steps, task.total_steps, 5) or step == task.total_steps:
            evaluated = task.evaluate(engine)
            metrics |= evaluated | memory.of_phase("evaluate")
            progress = _after_evaluation(session, config, task, progress, step, evaluated, write)
        session.telemetry.log(step, metrics)
        session.telemetry.progress(step, task.total_steps)
        stopping = session.guard.should_stop()
        due = is_due(step, config.checkpointing.every_steps, task.total_steps, 10)
        if stopping or (due and step < task.total_steps):
            state = progress._asdict()
            session.checkpointer.save(step, {"model": engine}, state, best=progress.best_step)
            session.telemetry.saved(step)
        if stopping:
            raise Terminated(f"SIGTERM: saved at step {step} of {task.total_steps}", step=step)
    best = progress.best_step
    if best is None or best == step:
        return Fitted(step, progress.metrics, None)
    kept = session.checkpointer.kept_weights(best)
    if kept is None:  # damaged or deleted since
        if session.ranks.is_main:
            log.warning("the best weights (step %d) are lost: the last ones are handed on", best)
        return Fitted(step, task.evaluate(engine), None)
    return Fitted(step, progress.metrics, kept)


def commit(
    session: Session, fitted: Fitted, write: Callable[[Path], None]
) -> tuple[CheckpointRef, dict[str, float]]:
    """Commit the best weights, or the last ones, as the stage's output."""
    kept = fitted.kept

    def copy(directory: Path) -> None:
        if session.ranks.is_main:
            assert kept is not None
            ignore = shutil.ignore_patterns(MANIFEST)
            shutil.copytree(kept, directory, ignore=ignore, dirs_exist_ok=True)

    ref = session.checkpointer.commit_output(write if kept is None else copy, fitted.metrics)
    return ref, fitted.metrics


def done(
    session: Session, step: int, checkpoint: CheckpointRef, metrics: dict[str, float]
) -> StageResult:
    """The stage's end: `metrics` are recorded, and the result has them beside the newest others."""
    session.telemetry.log(step, metrics)
    return StageResult(
        exit_code=ExitCode.DONE,
        reason="Done",
        step=step,
        checkpoint=checkpoint,
        metrics=session.telemetry.newest | metrics,
    )


class _Progress(NamedTuple):
    """What a checkpoint carries beside the engine."""

    best_step: int | None
    best: float | None
    metrics: dict[str, float]  # of the best weights, or of the newest evaluation


def _train_step(session: Session, engine: Engine, task: AnyTask, step: int) -> dict[str, float]:
    started = time.perf_counter()
    batch = task.batch(step)
    with session.guard.batch(step, batch.row_ids):
        figures = _accumulate(session, engine, task, batch)
        stats = engine.step()
    counts = torch.tensor([batch.tokens, batch.padded], dtype=torch.float64)
    tokens, padded = session.ranks.sum(counts).tolist()
    seconds = time.perf_counter() - started
    return figures | {
        "train/grad_norm": stats.grad_norm,
        "train/lr": stats.learning_rate,
        "train/tokens_per_second": tokens / seconds,
        "train/pad_fraction": 1 - tokens / max(padded, 1),
    }


def _accumulate(
    session: Session, engine: Engine, task: AnyTask, batch: StepBatch[Any]
) -> dict[str, float]:
    """Gradients of the whole batch; its figures summed over ranks, every one of them finite."""
    engine.module.train()
    parts = []
    for index, micro_batch in enumerate(batch.micro_batches):
        part = task.contribution(engine, micro_batch)
        engine.backward(part.loss, last=index == len(batch.micro_batches) - 1)
        parts.append({"train/loss": part.loss, **part.figures})
    return global_figures(session, parts)


def global_figures(session: Session, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Figures of all micro-batches and ranks, added up. NonFinite on every rank if one is not."""
    names = list(parts[0])
    local = torch.stack([torch.stack([p[n].detach().double() for n in names]) for p in parts])
    total = session.ranks.sum(local.sum(0))
    if not bool(torch.isfinite(total).all()):
        for index, name in enumerate(names):
            session.guard.check_finite(name, local[:, index])
    return dict(zip(names, total.tolist(), strict=True))


def _after_evaluation(
    session: Session,
    config: Supervised,
    task: AnyTask,
    before: _Progress,
    step: int,
    metrics: dict[str, float],
    write: Callable[[Path], None],
) -> _Progress:
    """Keep these weights if they are the best so far and not the last, which need no copy."""
    value = metrics.get(BEST_BY)
    if value is None or not config.keep_best:
        return _Progress(None, None, metrics)
    if not math.isfinite(value):  # else it would be the best for ever
        return before if before.best is not None else _Progress(None, None, metrics)
    if before.best is not None and value >= before.best:
        return before
    if step < task.total_steps:
        session.checkpointer.keep_weights(step, write)
    return _Progress(step, value, metrics)
