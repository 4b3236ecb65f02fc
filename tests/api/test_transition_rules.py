"""What may not change in a job that lives."""

from __future__ import annotations

import pytest
from rlhf_api.rules.transitions import broken_transitions
from rlhf_api.validation import parse_job
from rule_cases import manifest
from transition_cases import TRANSITIONS, TransitionCase


@pytest.mark.parametrize("case", TRANSITIONS, ids=[case.name for case in TRANSITIONS])
def test_an_immutable_field_is_told(case: TransitionCase) -> None:
    before, after = parse_job(manifest(case.before)), parse_job(manifest(case.after))
    told = broken_transitions(before.spec, after.spec)
    assert [problem.path for problem in told] == ([case.refused] if case.refused else [])
    assert all("is immutable" in problem.message for problem in told)
