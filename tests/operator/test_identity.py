"""What is, and what is not, part of a stage's identity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import JobBuilder, a_job
from rlhf_api.base import identity
from rlhf_api.fields import aliases, contracts_in
from rlhf_api.job import JobSpec, RLHFJob
from rlhf_operator.inputs import input_hash, prepare_hash, settings
from rlhf_operator.names import short

SOURCES = {
    "model": "sha256:base",
    "stages.sft.data": "sha256:sft",
    "stages.reward.data": "sha256:pairs",
    "stages.ppo.data": "sha256:prompts",
    "stages.dpo.data": "sha256:pairs",
}


def hashes(job: RLHFJob, sources: dict[str, str] = SOURCES) -> dict[str, str]:
    """Every stage's hash, if each output's digest followed from its inputs alone."""
    found: dict[str, str] = {}
    for stage in job.spec.stages.present():
        found[stage] = input_hash(job, stage, sources, found)
    return found


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {stage for stage in before if before[stage] != after[stage]}


BASE = hashes(a_job().build())
ALL = {"sft", "reward", "ppo", "dpo"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("stages.ppo.kl", {"coef": 0.5}),
        ("stages.ppo.learningRate", 3e-6),
        ("stages.ppo.rollout", {"temperature": 0.7}),
        ("stages.ppo.rewards", {"short": {"http": {"url": "http://judge"}, "weight": 2.0}}),
    ],
)
def test_a_ppo_field_changes_ppo_alone(path: str, value: Any) -> None:
    assert changed(BASE, hashes(a_job().with_spec(path, value).build())) == {"ppo"}


def test_a_changed_sft_file_changes_everything_after_it() -> None:
    other = {**SOURCES, "stages.sft.data": "sha256:other"}
    assert changed(BASE, hashes(a_job().build(), other)) == ALL


def test_a_changed_reward_field_changes_reward_and_ppo() -> None:
    job = a_job().with_spec("stages.reward.centerCoef", 0.01).build()
    assert changed(BASE, hashes(job)) == {"reward", "ppo"}


@pytest.mark.parametrize(
    ("path", "value"),
    [("seed", 7), ("image", "trainer:2"), ("model.init", "random")],
)
def test_seed_image_and_model_change_everything(path: str, value: Any) -> None:
    assert changed(BASE, hashes(a_job().with_spec(path, value).build())) == ALL


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("resources", {"nodes": 4, "gpusPerNode": 8}),
        ("stages.sft.resources", {"nodes": 2}),
        ("stages.sft.retry", {"maxFaults": 9, "deadlineSeconds": 60}),
        ("stages.sft.microBatchSize", 1),
        ("stages.sft.checkpointing", {"everySteps": 5}),
        ("stages.sft.gate", {"metric": "eval/loss", "max": 1.0}),
        ("stages.ppo.rollout", {"gpuMemoryUtilization": 0.5}),
        ("scheduling", {"gang": "volcano", "queue": "research"}),
        ("checkpoints", {"existingClaim": "shared"}),
        ("evaluation", {"prompts": {"source": "data/heldout.jsonl"}}),
        ("suspend", True),
    ],
)
def test_what_cannot_change_a_result_changes_nothing(path: str, value: Any) -> None:
    assert changed(BASE, hashes(a_job().with_spec(path, value).build())) == set()


def test_the_name_of_the_job_changes_nothing() -> None:
    assert changed(BASE, hashes(a_job().named("other").build())) == set()


def test_a_moved_file_with_the_same_content_is_the_same_data() -> None:
    job = a_job().with_spec("stages.sft.data.source", "s3://bucket/sft.jsonl").build()
    assert changed(BASE, hashes(job)) == set()


def test_a_file_of_unknown_content_is_known_by_its_address() -> None:
    before = hashes(a_job().build(), {})
    job = a_job().with_spec("stages.dpo.data.source", "moved/pairs.jsonl").build()
    assert changed(before, hashes(job, {})) == {"dpo"}


def test_a_field_written_out_with_its_default_is_the_same_meaning() -> None:
    job = a_job().with_spec("stages.ppo.kl", {"coef": 0.02, "estimator": "k1"}).build()
    assert changed(BASE, hashes(job)) == set()


def test_hashes_are_what_they_were() -> None:
    """Another digest of the same job trains every finished stage of every user again."""
    job = a_job().build()
    assert {of: short(digest) for of, digest in BASE.items()} == {
        "sft": "fcd70fe82c74",
        "reward": "0d3408b35c5d",
        "ppo": "d1dd77db0155",
        "dpo": "ab0ae3a09478",
    }
    assert short(prepare_hash(job, {})) == "ad257da6be3e"


def test_settings_are_what_they_were() -> None:
    """Another digest of the same job ends the attempts that run as the operator is upgraded."""
    job = a_job().build()
    assert {of: short(settings(job, of, digest)) for of, digest in BASE.items()} == {
        "sft": "8da4db7bfc71",
        "reward": "5a451f30f573",
        "ppo": "d087ee2fb12f",
        "dpo": "dc4ef62dc8f3",
    }
    assert short(settings(job, "prepare", "sha256:x")) == "e5fd55d63bea"


DEFAULTS = Path(__file__).with_name("hashed_defaults.txt")
"""Every default of the contract that is hashed although nobody wrote it."""


def test_a_new_default_enters_no_hash() -> None:
    known, found = set(DEFAULTS.read_text("utf-8").splitlines()), set(hashed_defaults())
    assert sorted(found - known) == [], (
        "Jobs that do not set such a field would get another hash, and train again: let it default "
        "to None, as LoRA.use_rslora does (docs/adr/0018). The line belongs into "
        f"{DEFAULTS.name} only where no job could have the field's class until now."
    )
    assert sorted(known - found) == [], "Jobs that do not set it would get another hash."


def hashed_defaults() -> list[str]:
    """As `PPOStage.clip 0.2`."""
    fields = ((of, *item) for of in contracts_in(JobSpec) for item in aliases(of).items())
    values = (
        (f"{of.__name__}.{name}", info.get_default(call_default_factory=True))
        for of, name, info in fields
        if not info.is_required()
    )
    plain = ((name, identity(value)) for name, value in values if value is not None)
    return [f"{name} {json.dumps(value, sort_keys=True)}" for name, value in plain]


def test_a_field_that_came_later_is_not_part_of_jobs_that_do_not_set_it() -> None:
    before, off, on = (
        a_job().with_spec("stages.sft.lora", {"rank": 8, **more}).build()
        for more in ({}, {"useRslora": False}, {"useRslora": True})
    )
    assert short(hashes(before)["sft"]) == "b97f8fec4adc"
    assert short(settings(before, "sft", "sha256:x")) == "6924b488af7f"
    assert hashes(off) == hashes(before)
    assert changed(hashes(before), hashes(on)) == ALL


def test_a_higher_clip_came_later_too() -> None:
    assert "clipHigh" not in a_job().build().spec.to_dict()["stages"]["ppo"]
    higher = a_job().with_spec("stages.ppo.clipHigh", 0.28).build()
    assert changed(BASE, hashes(higher)) == {"ppo"}


@pytest.mark.parametrize("field", ["stages.ppo.ratio", "stages.ppo.lossAggregation"])
def test_ratios_and_weights_of_responses_came_later_too(field: str) -> None:
    as_ever, other = (a_job().with_spec(field, of).build() for of in ("token", "sequence"))
    assert hashes(as_ever) == BASE
    assert changed(BASE, hashes(other)) == {"ppo"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stages.ppo.dynamicSampling", {}),
        ("stages.ppo.rollout.stop", ["</answer>"]),
        ("stages.sft.neftuneNoiseAlpha", 5),
    ],
    ids=lambda each: str(each),
)
def test_what_came_later_is_part_of_a_stage_that_sets_it_alone(field: str, value: Any) -> None:
    stage = field.split(".")[1]
    assert hashes(a_job().with_spec(field, None).build()) == BASE
    assert stage in changed(BASE, hashes(a_job().with_spec(field, value).build()))


def test_another_rollout_engine_gives_other_responses() -> None:
    job = a_job().with_spec("stages.ppo.rollout", {"engine": "vllm"}).build()
    assert changed(BASE, hashes(job)) == {"ppo"}


def test_a_null_that_replaces_a_default_is_another_meaning() -> None:
    job = a_job().with_spec("stages.ppo.rollout", {"importanceCap": None}).build()
    assert changed(BASE, hashes(job)) == {"ppo"}


@pytest.mark.parametrize(
    ("path", "value", "is_read"),
    [
        ("stages.sft.data.evalFraction", 0.2, True),
        ("stages.sft.data.columns", {"answer": "reply"}, True),
        ("stages.sft.maxLength", 512, True),
        ("stages.sft.maxLength", 2048, False),  # the reward stage reads no more than its own
        ("stages.sft.data.secret", "token", False),
        ("stages.sft.learningRate", 1e-3, False),
        ("stages.sft.microBatchSize", 1, False),
    ],
)
@pytest.mark.parametrize("normalise_on", ["auto", "demonstrations", "chosen", "all"])
def test_how_sft_reads_its_data_is_part_of_a_reward_model_that_is_normalised_on_them(
    normalise_on: str, path: str, value: Any, is_read: bool
) -> None:
    job = a_job().with_spec("stages.reward.startFrom", "base")  # no edge from sft
    before = hashes(job.with_spec("stages.reward.normaliseOn", normalise_on).build())
    after = hashes(job.with_spec(path, value).build())
    reads_them = normalise_on in ("auto", "demonstrations")
    assert ("reward" in changed(before, after)) is (is_read and reads_them)


@pytest.mark.parametrize(("normalise_on", "counts"), [("auto", True), ("all", False)])
def test_demonstrations_count_by_their_content(normalise_on: str, counts: bool) -> None:
    job = a_job().with_spec("stages.reward.startFrom", "base")
    built = job.with_spec("stages.reward.normaliseOn", normalise_on).build()
    other = hashes(built, {**SOURCES, "stages.sft.data": "sha256:other"})
    assert ("reward" in changed(hashes(built), other)) is counts


def test_data_that_a_trainer_of_ones_own_reads_are_no_demonstrations() -> None:
    job = a_job().with_spec("stages.reward.startFrom", "base")
    job.with_spec("stages.sft.command", ["train"])
    other = hashes(job.build(), {**SOURCES, "stages.sft.data": "sha256:other"})
    assert "reward" not in changed(hashes(job.build()), other)


@pytest.mark.parametrize(
    ("job", "stage", "expected"),
    [
        (a_job(), "sft", {}),
        (a_job(), "reward", {"policy": "sft"}),
        (a_job(), "ppo", {"policy": "sft", "reward": "reward"}),
        (a_job(), "dpo", {"policy": "sft"}),
        (a_job().only("ppo", "reward"), "ppo", {"reward": "reward"}),
        (a_job().only("dpo"), "dpo", {}),
        (a_job().with_spec("stages.reward.startFrom", "base"), "reward", {}),
        (a_job().with_spec("stages.reward.startFrom", "random"), "reward", {}),
        (a_job().with_spec("stages.reward.startFrom", "sft"), "reward", {"policy": "sft"}),
    ],
)
def test_edges_follow_from_inputs(job: JobBuilder, stage: str, expected: dict[str, str]) -> None:
    assert job.build().spec.stages.parents(stage) == expected


HTTP = {"judge": {"http": {"url": "http://judge"}}}


@pytest.mark.parametrize(
    ("rewards", "critic", "advantage", "needs_reward"),
    [
        ({}, "fresh", "grpo", True),
        ({"own": {"stage": "reward"}}, "fresh", "gae", True),
        (HTTP, "auto", "gae", True),  # the critic starts from it
        (HTTP, "fresh", "gae", False),
        (HTTP, "auto", "grpo", False),  # no critic
    ],
)
def test_ppo_waits_for_the_reward_stage_where_it_uses_it(
    rewards: dict[str, Any], critic: str, advantage: str, needs_reward: bool
) -> None:
    job = a_job().with_spec("stages.ppo.rewards", rewards).with_spec("stages.ppo.critic", critic)
    job.with_spec("stages.ppo.advantage", advantage)
    assert ("reward" in job.build().spec.stages.parents("ppo")) is needs_reward


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("resources", {"nodes": 4}, True),
        ("stages.sft.microBatchSize", 1, True),
        ("stages.sft.retry", {"deadlineSeconds": 60}, True),
        ("stages.sft.retry", {"maxFaults": 9}, False),
        ("stages.sft.gate", {"approval": True}, False),
        ("stages.ppo.kl", {"coef": 0.5}, False),
    ],
)
def test_settings_tell_what_an_attempt_was_started_with(
    path: str, value: Any, expected: bool
) -> None:
    before = settings(a_job().build(), "sft", "sha256:x")
    after = settings(a_job().with_spec(path, value).build(), "sft", "sha256:x")
    assert (before != after) is expected


def test_settings_of_a_reward_stage_cover_its_demonstrations() -> None:
    job = a_job()
    before = settings(job.build(), "reward", "sha256:x")
    job.with_spec("stages.sft.data.secret", "token")
    assert settings(job.build(), "reward", "sha256:x") != before


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("stages.reward.normaliseOn", "chosen", True),
        ("stages.sft.data.source", "other.jsonl", True),
        ("stages.sft.maxLength", 2048, True),
        ("evaluation", {"prompts": {"source": "data/heldout.jsonl"}}, True),
        ("stages.sft.learningRate", 1e-3, False),
        ("resources", {"nodes": 4}, False),
    ],
)
def test_prepare_looks_again_at_what_it_checks(path: str, value: Any, expected: bool) -> None:
    before = prepare_hash(a_job().build(), {})
    assert (before != prepare_hash(a_job().with_spec(path, value).build(), {})) is expected


def test_prepare_looks_again_at_a_changed_local_file() -> None:
    job = a_job().build()
    assert prepare_hash(job, {"a": "1"}) != prepare_hash(job, {"a": "2"})
