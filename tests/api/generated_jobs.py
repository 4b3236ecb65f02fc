"""Hypothesis strategies for manifests, read from the models: mostly right, wrong here and there."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args, get_origin

from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from rlhf_api.base import Contract
from rlhf_api.fields import aliases, members
from rlhf_api.job import JobSpec, Stages
from rlhf_api.status import JobStatus

WORDS = [
    "a", "b", "job-1", "Upper_case", "example.com/key", "hf://owner/name", "hf://owner/name/more",
    "s3://bucket/key", "s3://bucket", "gs://b/k/..", "pvc://claim/a/../b", "pvc://claim/rows.jsonl",
    "oci://image:1#models", "oci://image#", "ftp://x", "rows.jsonl", "../rows", "", "two words",
    "中文", "é", "\u00a0", "LD_PRELOAD", "PATH", "HOME_1", "/etc/x", "/secrets/a", "5", "5Gi",
    "1.5Ti", "-1", "module:function", "http://judge/score", "https://", "eval/accuracy", "a\tb",
]  # fmt: skip
KEYS = ["a", "b", "example.com/key", "two words"]
PIPELINES = [("sft",), ("dpo",), ("reward",), ("sft", "reward", "ppo")]
LIMITS = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")


def specs(wrong: bool) -> st.SearchStrategy[dict[str, Any]]:
    """Specs; where `wrong`, a field may hold what the field alone forbids."""
    return _contract(JobSpec, wrong)


def statuses() -> st.SearchStrategy[dict[str, Any]]:
    """Statuses that the models allow."""
    return _contract(JobStatus, wrong=False).filter(_is_status)


def _is_status(value: dict[str, Any]) -> bool:
    try:
        JobStatus.model_validate(value, by_alias=True, by_name=False)
    except ValidationError:
        return False
    return True


def _contract(model: type[Contract], wrong: bool) -> st.SearchStrategy[dict[str, Any]]:
    needed = {
        name: _value(info.annotation, _limits(info), wrong)
        for name, info in aliases(model).items()
        if info.is_required()
    }
    free = {
        name: st.deferred(lambda info=info: _value(info.annotation, _limits(info), wrong))
        for name, info in aliases(model).items()
        if not info.is_required()
    }

    @st.composite
    def built(draw: st.DrawFn) -> dict[str, Any]:
        names = st.lists(st.sampled_from(sorted(free)), unique=True, max_size=4)
        chosen = set(draw(names)) if free else set()
        if model is Stages:
            chosen |= set(draw(st.sampled_from(PIPELINES)))
        fields = needed | {name: free[name] for name in sorted(chosen)}
        return {name: draw(strategy) for name, strategy in fields.items()}

    return built()


def _value(annotation: Any, limits: dict[str, Any], wrong: bool) -> st.SearchStrategy[Any]:
    options = [_one(member, limits, wrong) for member in members(annotation)]
    return st.one_of(options)


def _one(annotation: Any, limits: dict[str, Any], wrong: bool) -> st.SearchStrategy[Any]:
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        for item in metadata:
            limits = limits | (_limits(item) if isinstance(item, FieldInfo) else _named(item))
        return _value(inner, limits, wrong)
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if get_origin(annotation) is list:
        return st.lists(
            _value(get_args(annotation)[0], {}, wrong),
            min_size=limits.get("min_length", 0),
            max_size=2,
        )
    if get_origin(annotation) is dict:
        keys = st.sampled_from(KEYS)
        return st.dictionaries(keys, _value(get_args(annotation)[1], {}, wrong), max_size=2)
    if isinstance(annotation, type) and issubclass(annotation, Contract):
        return _contract(annotation, wrong)
    return _scalar(annotation, limits, wrong)


def _scalar(annotation: Any, limits: dict[str, Any], wrong: bool) -> st.SearchStrategy[Any]:
    if annotation is bool:
        return st.booleans()
    if annotation is str:
        fitting = [word for word in WORDS if _fits(word, limits)]
        return st.sampled_from(WORDS if wrong or not fitting else fitting)
    low = limits.get("ge", limits.get("gt", -5))
    high = limits.get("le", limits.get("lt", low + 1000))
    near = {low, high, min(low + 1, high), min(low + 2, high), (low + high) / 2}
    if wrong:
        near |= {low - 1, high + 1, high + 0.5}
    if annotation is int:
        return st.sampled_from(sorted({int(number) for number in near}))
    inside = {float(number) for number in near}
    if not wrong:
        inside -= {float(limits[name]) for name in ("gt", "lt") if name in limits}
    return st.sampled_from(sorted(inside))


def _fits(word: str, limits: dict[str, Any]) -> bool:
    low, high = limits.get("min_length", 0), limits.get("max_length", len(word))
    return low <= len(word) <= high and bool(re.search(limits.get("pattern", ""), word))


def _limits(info: FieldInfo) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in info.metadata:
        found |= _limits(item) if isinstance(item, FieldInfo) else _named(item)
    return found


def _named(item: Any) -> dict[str, Any]:
    names = (name for name in LIMITS if getattr(item, name, None) is not None)
    return {name: getattr(item, name) for name in names}
