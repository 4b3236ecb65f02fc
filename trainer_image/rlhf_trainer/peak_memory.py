"""Peak memory of a phase: which one a run that ends without room is close to end in.

On a GPU, what tensors took of it at most. On a CPU, what the process had in memory at most; freed
memory stays with it (`freed_memory`), so that a phase has at least what those before it left.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch

from rlhf_trainer.ranks import Ranks

GB: Final = 10**9
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # proc(5)
FORGET_PEAK: Final = "5"
HIGH_WATER: Final = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


class PeakMemory:
    """Watches one phase after the other."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._forget()

    def of_phase(self, name: str) -> dict[str, float]:
        """``memory/<name>``: GB of the rank that took most, since the last phase; empty where the
        system does not tell. A collective.
        """
        peak = float(self.ranks.max(torch.tensor(self._bytes() / GB)))
        self._forget()
        return {f"memory/{name}": peak} if peak else {}

    def _bytes(self) -> int:
        device = self.ranks.device
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device)
        found = None
        with suppress(OSError):
            found = HIGH_WATER.search(STATUS.read_text())
        return int(found[1]) * 1024 if found else 0

    def _forget(self) -> None:
        """The next phase has a peak of its own. Where a kernel refuses, that of the run so far."""
        if self.ranks.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.ranks.device)
            return
        with suppress(OSError):
            CLEAR_REFS.write_text(FORGET_PEAK)
