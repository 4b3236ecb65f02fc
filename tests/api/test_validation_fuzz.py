"""Whatever is decoded, the validator answers with a job or with problems, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rlhf_api.job import RLHFJob
from rlhf_api.validation import InvalidJob, Problem, parse_job
from rule_cases import FULL

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**30, -(10**400), 0, -1]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "\0", "../..", "hf://a/b", "ftp://x", "中文", "\ud800", "x" * 5000]),
)
KEYS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["spec", "stages", "sft", "ppo", "data", "source", "gate", "rewards", "kl"]),
    st.integers(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything inside a decoded manifest."""
    items = value.items() if isinstance(value, dict) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


RICH: dict[str, Any] = copy.deepcopy(FULL)
RICH["spec"]["stages"]["ppo"] |= {
    "rewards": {"a": {"weight": 1.0, "stage": "reward"}},
    "kl": {"coef": 0.1, "adaptive": {"target": 6.0}},
    "rollout": {"engine": "native"},
    "resources": {"nodes": 2},
    "retry": {"maxFaults": 1},
    "globalBatchSize": 64,
}
RICH["spec"]["stages"]["reward"]["gate"] = {"metric": "eval/accuracy", "min": 0.6}
RICH["spec"]["stages"]["sft"]["lora"] = {"rank": 4, "targetModules": ["q_proj"]}
RICH["spec"]["resources"] = {"cpu": "4", "tolerations": [{"key": "a"}], "nodeSelector": {"a": "b"}}
RICH["spec"]["checkpoints"] = {"claim": {"size": "1Gi"}}
RICH["status"] = {"phase": "Running", "stages": {"sft": {"phase": "Running"}}}
PLACES = sorted(places(RICH), key=str)


def answers(obj: Any) -> None:
    """The validator raises InvalidJob with problems, or gives a job."""
    problems: list[Problem] = []
    try:
        job = parse_job(obj)
    except InvalidJob as error:
        problems = error.problems
    else:
        assert isinstance(job, RLHFJob)
        return
    assert problems
    assert all(problem.path and problem.message for problem in problems)


@settings(max_examples=150, deadline=None)
@given(VALUES)
def test_anything_decoded_is_answered(obj: Any) -> None:
    answers(obj)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=4))
def test_a_valid_manifest_with_anything_put_anywhere_is_answered(
    changes: list[tuple[tuple[Any, ...], Any]],
) -> None:
    obj = copy.deepcopy(RICH)
    for path, value in changes:
        place: Any = obj
        for part in path[:-1]:
            place = place.get(part) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[path[-1]] = value
    answers(obj)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PLACES), KEYS, VALUES)
def test_an_unknown_field_anywhere_is_answered(path: tuple[Any, ...], key: Any, value: Any) -> None:
    obj = copy.deepcopy(RICH)
    place: Any = obj
    for part in path:
        place = place[part]
    if isinstance(place, dict):
        place[key] = value
    answers(obj)


def test_the_manifest_that_is_changed_is_valid() -> None:
    parse_job(RICH)
