"""What the trainer's libraries are kept from doing."""

from __future__ import annotations

import subprocess
import sys

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
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-3:] == ["True", "False", "False"]
