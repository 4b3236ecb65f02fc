"""Memory that was freed stays with the process, for the next step."""

from __future__ import annotations

import subprocess
import sys

import pytest

IN_FOUR_BLOCKS = """
import sys, torch
from pathlib import Path
from rlhf_trainer.freed_memory import keep_freed_memory

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    assert keep_freed_memory()
torch.ones(1)
before = resident()
blocks = [torch.ones(5 << 20) for _ in range(4)]  # 20 MiB each
del blocks
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
@pytest.mark.parametrize(("how", "least", "most"), [("kept", 79, 160), ("given back", -1, 41)])
def test_what_was_freed_stays_with_the_process(how: str, least: float, most: float) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_FOUR_BLOCKS, how], capture_output=True, text=True, check=True
    )
    assert least < float(done.stdout) < most  # MiB
