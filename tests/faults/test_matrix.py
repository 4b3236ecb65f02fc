"""Whatever clusters and people do to a job, in whichever phase: the rules of reliability hold.

`pytest tests/faults --faults=all` plays the whole table, a test for each phase, and each storm;
without it a fixed sample is played.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from cluster.control_plane import ControlPlane
from cluster.nodes import FakeNodes

from faults.matrix import PHASES, SAMPLE, STORMS, Cell, cells, storm
from faults.stories import play_all, play_storm


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The cells of each test."""
    is_full = metafunc.config.getoption("--faults") == "all"
    if "happening" in metafunc.fixturenames:
        metafunc.parametrize("happening", STORMS)
        return
    of = {phase: cells(phase) for phase in PHASES} if is_full else {"sample": SAMPLE}
    metafunc.parametrize("table", of.values(), ids=of)


def test_a_job_survives_whatever_happens_to_it(
    table: Sequence[Cell], installed: ControlPlane, fake_nodes: FakeNodes, tmp_path: Path
) -> None:
    assert asyncio.run(play_all(table, installed, fake_nodes, tmp_path)) == {}


@pytest.mark.all_faults
def test_jobs_survive_a_control_plane_that_is_away(
    happening: str, installed: ControlPlane, fake_nodes: FakeNodes, tmp_path: Path
) -> None:
    struck = play_storm(storm(happening), installed, fake_nodes, tmp_path)
    assert asyncio.run(struck) == {}
