"""What one pass finds out of a spec the next one finds again, and never that of another spec."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from builders import MANIFEST, NOON
from rlhf_api.validation import InvalidJob, parse_job
from rlhf_operator import inputs, known_specs
from rlhf_operator.inputs import Wanted
from rlhf_operator.known_specs import known_job
from rlhf_operator.observed import Observed
from rlhf_operator.plan import assess

HAS_BEGUN = {"status": {"observedGeneration": 1, "stages": {"sft": {"attempt": 1}}}}


def manifest(**spec: Any) -> dict[str, Any]:
    made = copy.deepcopy(MANIFEST)
    made["spec"] |= spec
    return made


def wanted(of: dict[str, Any]) -> dict[str, Wanted | None]:
    return dict(assess(known_job(of), Observed(), NOON).wanted)


def test_a_spec_is_checked_once_and_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def again(*_: object) -> None:
        raise AssertionError("is done again")

    first = wanted(manifest(seed=1001))
    monkeypatch.setattr(inputs, "digest", again)
    monkeypatch.setattr(known_specs, "parse_job", again)
    later = json.loads(json.dumps(manifest(seed=1001))) | HAS_BEGUN
    assert wanted(later) == first
    assert known_job(later).status == parse_job(later).status


@pytest.mark.parametrize(
    "edit", [{"seed": 1003}, {"image": "mine:2"}, {"checkpoints": {"existingClaim": "other"}}]
)
def test_an_edit_is_seen(edit: dict[str, Any]) -> None:
    wanted(manifest(seed=1002))
    edited = manifest(**{"seed": 1002} | edit)
    assert wanted(edited) == dict(assess(parse_job(edited), Observed(), NOON).wanted)


def test_an_annotation_and_a_name_count_beside_the_spec() -> None:
    before, other = manifest(seed=1004), manifest(seed=1004)
    other["metadata"] |= {"annotations": {"rlhf.dev/refresh": "now"}}
    renamed = manifest(seed=1004)
    renamed["metadata"] |= {"name": "another"}
    found = [wanted(item)["prepare"] for item in (before, other, renamed)]
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    "broken",
    [
        manifest(seed=True),  # which is equal to 1 in Python
        manifest(seed=1.0),
        manifest(stages={}),
        {k: v for k, v in MANIFEST.items() if k != "spec"},
        manifest(seed=1) | {"status": {"stages": 5}},
        manifest(seed="x") | {"status": {"stages": 5}},
    ],
)
def test_what_cannot_be_read_is_told_as_ever(broken: dict[str, Any]) -> None:
    known_job(manifest(seed=1))
    with pytest.raises(InvalidJob) as expected:
        parse_job(broken)
    with pytest.raises(InvalidJob) as found:
        known_job(broken)
    assert found.value.problems == expected.value.problems
