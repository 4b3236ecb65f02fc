"""The operator is killed, or refused an answer, at any of its writes; the end is the same.

`pytest tests/faults --faults=all` tries each fault at each call, and kills one pipeline's operator
at every single call; without it a fixed sample is tried.
"""

from __future__ import annotations

import pytest

from faults.audit import FAULTS, is_certain
from faults.invariants import INVARIANTS
from faults.results import Results


@pytest.mark.parametrize("invariant", INVARIANTS)
def test_an_invariant_holds_whatever_happened_at_whichever_call(
    results: Results, invariant: str
) -> None:
    assert results.broken(invariant) == {}


def test_every_pipeline_comes_to_an_end(results: Results) -> None:
    assert results.endless == {}


def test_every_fault_struck(results: Results) -> None:
    assert [name for name in results.missed() if is_certain(name)] == []
    struck = {call.fault for run in results.ended.values() for call in run.audit.struck}
    assert struck == {*FAULTS}
