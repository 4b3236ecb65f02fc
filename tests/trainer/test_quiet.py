"""What the trainer's libraries are kept from doing."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
from rlhf_trainer.quiet import configure_logging

COMPILER = "torch._inductor.compile_fx"
STEPS = f"""
import sys, torch
from rlhf_trainer.quiet import import_deepspeed
from rlhf_trainer.ranks import Ranks

Ranks.start()
deepspeed = import_deepspeed()
for stage in (2, 3):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    config = {{"train_micro_batch_size_per_gpu": 1, "zero_optimization": {{"stage": stage}}}}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    engine.backward(engine(torch.ones(1, 2)).sum())
    engine.step()
print(*(name in sys.modules for name in ("deepspeed", "mlflow", "{COMPILER}")))
import mlflow
"""


def test_an_engine_steps_without_mlflow_and_the_compiler_which_can_be_loaded_after_it() -> None:
    command = [sys.executable, "-c", STEPS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-3:] == ["True", "False", "False"]


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """Ours; as it was, afterwards."""
    ours = logging.getLogger("rlhf_trainer")
    handlers, propagate, level = ours.handlers[:], ours.propagate, ours.level
    yield ours
    ours.handlers[:], ours.propagate = handlers, propagate
    ours.setLevel(level)


@pytest.mark.parametrize(("rank", "said"), [(0, "a figure\na fault\n"), (3, "a fault\n")])
def test_a_rank_leaves_its_number_to_the_launcher_which_marks_every_line(
    log: logging.Logger, rank: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(rank)
    log.info("a figure")
    log.error("a fault")
    assert capsys.readouterr().err == said
