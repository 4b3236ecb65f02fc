"""What the trainer's libraries are kept from doing."""

from __future__ import annotations

import subprocess
import sys

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
