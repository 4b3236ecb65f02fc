"""The operator is killed, or refused an answer, at any of its writes; the end is the same.

`pytest tests/faults --faults=all` tries each fault at each call, and kills one pipeline's operator
at every single call; without it a fixed sample is tried.
"""

from __future__ import annotations

import pytest

from faults.audit import FAULTS, is_certain
from faults.invariants import INVARIANTS
from faults.results import Results


def is_leak(invariant: str, name: str) -> bool:
    """Whether the fault struck between the deletes of one attempt's children."""
    return invariant == "I4" and name.startswith("DELETE")


@pytest.mark.parametrize("invariant", INVARIANTS)
def test_an_invariant_holds_whatever_happened_at_whichever_call(
    results: Results, invariant: str
) -> None:
    broken = results.broken(invariant)
    assert {name: said for name, said in broken.items() if not is_leak(invariant, name)} == {}


@pytest.mark.xfail(
    strict=True,
    reason="Of an attempt whose Job is gone the plan sees neither ConfigMap, Service nor PodGroup.",
)
def test_superseded_children_go_even_if_only_some_of_them_were_deleted(results: Results) -> None:
    assert [name for name in results.broken("I4") if is_leak("I4", name)] == []


def test_every_pipeline_comes_to_an_end(results: Results) -> None:
    assert results.endless == {}


def test_every_fault_struck(results: Results) -> None:
    assert [name for name in results.missed() if is_certain(name)] == []
    struck = {call.fault for run in results.ended.values() for call in run.audit.struck}
    assert struck == {*FAULTS}
