"""Peak memory of one phase after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
from rlhf_trainer import peak_memory
from rlhf_trainer.peak_memory import PeakMemory
from rlhf_trainer.ranks import Ranks

LARGE = 300_000_000


def test_a_phase_has_its_own_peak_also_where_it_freed_what_it_took() -> None:
    memory = PeakMemory(Ranks())
    before = memory.of_phase("load")["memory/load"]
    taken = bytearray(b"1") * LARGE
    del taken
    during = memory.of_phase("generate")["memory/generate"]
    after = memory.of_phase("update")["memory/update"]
    assert during == pytest.approx(before + 0.3, abs=0.05)
    assert after == pytest.approx(before, abs=0.05)


def test_where_the_system_does_not_tell_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STATUS", "CLEAR_REFS"):
        monkeypatch.setattr(peak_memory, name, tmp_path / "no" / name)
    assert PeakMemory(Ranks()).of_phase("train") == {}
