"""A training curve of the engine on fixed rows; run by torchrun, the curves of ZeRO 0 to 3."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from rlhf_api.stages import SFTStage
from rlhf_trainer.engine import Engine, model_dtype
from rlhf_trainer.ranks import Ranks
from torch import Tensor

ROWS, TIME = 7, 12


def ids() -> Tensor:
    """Fixed token rows (7, 12)."""
    return torch.randint(3, 300, (ROWS, TIME), generator=torch.Generator().manual_seed(3))


def settings(stage: int, precision: str = "auto", offload: str = "none") -> SFTStage:
    """Settings under which clipping, decay and the schedule all bite."""
    return SFTStage.model_validate(
        {
            "data": {"source": "unused"},
            "learningRate": 3e-3,
            "weightDecay": 0.1,
            "maxGradNorm": 0.5,
            "precision": precision,
            "schedule": {"warmupRatio": 0.3},
            "zero": {"stage": stage, "offload": offload},
        }
    )


def make_engine(
    model: Path, ranks: Ranks, stage: int, precision: str = "auto", offload: str = "none"
) -> Engine:
    """An engine on the model in a directory."""
    from transformers import AutoModelForCausalLM

    chosen = settings(stage, precision, offload)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=model_dtype(chosen, ranks))
    return Engine.create(loaded, chosen, ranks=ranks, total_steps=8)


def curve(engine: Engine, steps: int) -> list[list[float]]:
    """[loss, gradient norm] of each step: seven rows in micro-batches of uneven size, by rank."""
    ranks = engine._ranks
    parts = [[[0, 1, 2], [3]], [[4], [5, 6]]]
    mine = [p for part in parts for p in part] if ranks.world_size == 1 else parts[ranks.rank]
    rows, found = ids(), []
    engine.module.train()
    for _ in range(steps):
        total = torch.zeros(())
        for index, chosen in enumerate(mine):
            batch = rows[chosen]
            share = len(chosen) / ROWS  # all rows have as many tokens
            loss = engine(input_ids=batch, labels=batch).loss * share
            engine.backward(loss, last=index == len(mine) - 1)
            total += loss.detach()
        norm = engine.step().grad_norm
        found.append([float(ranks.sum(total)), norm])
    return found


def weights(engine: Engine) -> dict[str, Tensor]:
    """The whole weights, copied."""
    with engine.gathered():
        return {k: v.detach().clone() for k, v in engine.module.state_dict().items()}


def main(model: str, out: str) -> None:
    """The curves of ZeRO 0 to 3 on all ranks, written by rank 0."""
    ranks = Ranks.start()
    curves: dict[str, Any] = {}
    for stage in range(4):
        curves[str(stage)] = curve(make_engine(Path(model), ranks, stage), steps=5)
    if ranks.is_main:
        Path(out).write_text(json.dumps(curves))
    ranks.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
