"""What the trainer's libraries are kept from doing."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOADED = """
import sys
from rlhf_trainer.quiet import import_deepspeed

import_deepspeed()
print("deepspeed" in sys.modules, "mlflow" in sys.modules)
import mlflow
"""


def test_deepspeed_is_loaded_without_mlflow_which_can_be_loaded_after_it() -> None:
    command = [sys.executable, "-c", LOADED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split()[-2:] == ["True", "False"]


COMPILER = "torch._inductor.compile_fx"
ENGINE = f"""
import sys, torch
from rlhf_trainer.quiet import import_deepspeed
from rlhf_trainer.ranks import Ranks

Ranks.start()
deepspeed = import_deepspeed()
model = torch.nn.Linear(2, 2)
config = {{
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {{"stage": int(sys.argv[1])}},
    "zero_allow_untested_optimizer": False,
}}
engine, *_ = deepspeed.initialize(
    model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config
)
engine.backward(engine(torch.ones(1, 2)).sum())
engine.step()
print("{COMPILER}" in sys.modules)
"""


@pytest.mark.parametrize("stage", ["2", "3"])
def test_an_engine_does_not_load_the_compiler_that_it_does_not_use(stage: str) -> None:
    command = [sys.executable, "-c", ENGINE, stage]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "False"
