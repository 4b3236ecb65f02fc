"""The contract keeps its own promises: strict, described, bounded, camelCase, with an identity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import ValidationError
from rlhf_api.base import Contract, digest, identity
from rlhf_api.job import RLHFJob
from rlhf_api.run import StageResult, StageRun
from rlhf_api.sources import named_sources, uris


def manifest(**stages: Any) -> dict[str, Any]:
    return {
        "apiVersion": "rlhf.dev/v1alpha1",
        "kind": "RLHFJob",
        "metadata": {"name": "tiny"},
        "spec": {"model": {"source": "models/base"}, "stages": stages},
    }


SFT = {"data": {"source": "sft.jsonl"}}
PPO = {"data": {"source": "prompts.jsonl"}, "rewards": {"short": {"http": {"url": "http://judge"}}}}


def models(root: type[Contract], seen: set[type[Contract]]) -> Iterator[type[Contract]]:
    """Every model that a field of `root` leads to."""
    if root in seen:
        return
    seen.add(root)
    yield root
    for info in root.model_fields.values():
        for part in _types(info.annotation):
            if isinstance(part, type) and issubclass(part, Contract):
                yield from models(part, seen)


def _types(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _types(part)


EVERY_FIELD = [
    (f"{model.__name__}.{name}", info)
    for root in (RLHFJob, StageRun, StageResult)
    for model in models(root, set())
    for name, info in model.model_fields.items()
]


@pytest.mark.parametrize(("where", "info"), EVERY_FIELD, ids=[where for where, _ in EVERY_FIELD])
def test_every_field_is_described(where: str, info: Any) -> None:
    assert info.description, f"{where} has no description"


@pytest.mark.parametrize(
    ("where", "info"),
    [
        (w, i)
        for w, i in EVERY_FIELD
        if i.annotation in (int, float)
        and not w.startswith(
            ("JobStatus", "StageStatus", "FinishedRun", "StageRun", "StageResult", "ObjectMeta")
        )
    ],
)
def test_every_number_that_a_user_writes_is_bounded_below(where: str, info: Any) -> None:
    bounds = [bound for bound in info.metadata if hasattr(bound, "ge") or hasattr(bound, "gt")]
    assert bounds, f"{where} has no lower bound"


def test_snake_case_is_refused_in_a_manifest() -> None:
    with pytest.raises(ValidationError, match="learning_rate"):
        RLHFJob.parse(manifest(sft={**SFT, "learning_rate": 1e-4}))


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        RLHFJob.parse(manifest(sft={**SFT, "lerningRate": 1e-4}))


def test_text_is_not_taken_for_a_number() -> None:
    with pytest.raises(ValidationError, match="valid integer"):
        RLHFJob.parse(manifest(sft={**SFT, "globalBatchSize": "64"}))


def test_a_job_survives_being_written_and_read() -> None:
    job = RLHFJob.parse(manifest(sft=SFT, ppo=PPO))
    assert RLHFJob.parse(job.to_dict()) == job


def test_written_defaults_have_the_same_identity_as_left_out_ones() -> None:
    job = RLHFJob.parse(manifest(sft=SFT))
    again = RLHFJob.parse(job.to_dict())
    assert digest(again.spec) == digest(job.spec)


@pytest.mark.parametrize(
    "change",
    [
        {"microBatchSize": 1},
        {"retry": {"maxFaults": 0}},
        {"resources": {"nodes": 2}},
        {"checkpointing": {"keep": 7}},
        {"gate": {"approval": True}},
        {"evalEverySteps": 3},
        {"gradientCheckpointing": True},
    ],
)
def test_operational_settings_leave_the_identity_alone(change: dict[str, Any]) -> None:
    plain = RLHFJob.parse(manifest(sft=SFT)).spec.stages.sft
    changed = RLHFJob.parse(manifest(sft={**SFT, **change})).spec.stages.sft
    assert changed != plain
    assert identity(changed) == identity(plain)


@pytest.mark.parametrize(
    "change", [{"learningRate": 2e-5}, {"globalBatchSize": 32}, {"lora": {}}, {"maxLength": 512}]
)
def test_settings_with_meaning_change_the_identity(change: dict[str, Any]) -> None:
    plain = RLHFJob.parse(manifest(sft=SFT)).spec.stages.sft
    changed = RLHFJob.parse(manifest(sft={**SFT, **change})).spec.stages.sft
    assert identity(changed) != identity(plain)


def test_every_source_is_found_with_its_place_in_the_manifest() -> None:
    ppo = {**PPO, "rewards": {"judge": {"function": {"entrypoint": "m:f", "source": "code"}}}}
    spec = RLHFJob.parse(manifest(sft={"data": {"source": "a", "evalSource": "b"}}, ppo=ppo)).spec
    found = {ref.field: uris(ref.value) for ref in named_sources(spec)}
    assert found == {
        "model": ("models/base",),
        "stages.sft.data": ("a", "b"),
        "stages.ppo.data": ("prompts.jsonl",),
        "stages.ppo.rewards.judge.function": ("code",),
    }
