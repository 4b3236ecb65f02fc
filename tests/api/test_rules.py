"""Rules across fields, each tried on the manifest that breaks it and on the nearest that holds."""

from __future__ import annotations

import pytest
from rlhf_api.job import RLHFJob
from rlhf_api.rules import ALL_RULES, asked
from rlhf_api.validation import InvalidJob, Problem, parse_job
from rule_cases import CASES, FULL, Case, manifest


def problems(obj: object) -> list[Problem]:
    with pytest.raises(InvalidJob) as caught:
        parse_job(obj)
    return caught.value.problems


def names(cases: list[Case]) -> list[str]:
    return [f"{case.rule}-{number}" for number, case in enumerate(cases)]


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_breaking_a_rule_is_refused_at_its_field_and_nowhere_else(case: Case) -> None:
    found = problems(manifest(case.bad))
    assert [problem.path for problem in found] == [case.problem]
    assert found[0].message
    assert found[0].allowed


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_the_nearest_manifest_that_keeps_the_rule_is_accepted(case: Case) -> None:
    parse_job(manifest(case.good))


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_a_rule_speaks_also_where_another_part_is_broken(case: Case) -> None:
    broken = manifest(case.bad)
    broken["spec"]["seed"] = -1
    paths = [problem.path for problem in problems(broken)]
    assert sorted(paths) == sorted([case.problem, "spec.seed"])


def test_every_rule_is_broken_by_a_case_of_its_name() -> None:
    every = {rule for table in ALL_RULES for rules in table.values() for rule in rules}
    for case in CASES:
        job = RLHFJob.parse(manifest(case.bad))
        broken = {rule for rule, _, value in asked(job.spec) if not rule.holds(value)}
        assert {rule.name for rule in broken} == {case.rule}
        every -= broken
    assert every == set()


def test_the_manifest_that_the_cases_change_is_valid() -> None:
    assert list(parse_job(FULL).spec.stages.present()) == ["sft", "reward", "ppo", "dpo"]


def test_a_rule_is_silent_where_what_it_reads_is_broken() -> None:
    broken = manifest({"stages.ppo.globalBatchSize": "many", "stages.ppo.minibatchSize": 7})
    assert [problem.path for problem in problems(broken)] == ["spec.stages.ppo.globalBatchSize"]


def test_a_rule_does_not_take_the_default_of_a_field_whose_name_was_misspelt() -> None:
    broken = manifest({"stages.sft.global_batch_size": 1000, "stages.sft.microBatchSize": 100})
    assert [problem.path for problem in problems(broken)] == ["spec.stages.sft.global_batch_size"]


def test_a_misspelt_reward_stage_is_not_also_called_missing() -> None:
    broken = manifest({})
    broken["spec"]["stages"]["rewards"] = broken["spec"]["stages"].pop("reward")
    assert [problem.path for problem in problems(broken)] == ["spec.stages.rewards"]


def test_a_rule_of_an_item_speaks_where_another_item_is_broken() -> None:
    entries = [{"name": "A", "value": 1}, {"name": "PATH", "value": "x"}]
    told = {item.path for item in problems(manifest({"env": entries}))}
    assert told == {"spec.env[0].value", "spec.env[1].name"}


def test_a_rule_is_silent_where_its_words_need_what_is_broken() -> None:
    told = {item.path for item in problems(manifest({"env": [{"name": "a-b"}]}))}
    assert told == {"spec.env[0].name"}


def test_other_stages_are_still_checked_where_one_is_no_mapping() -> None:
    broken = manifest({"stages.sft": 5, "stages.dpo.gate": {}})
    assert {item.path for item in problems(broken)} == {"spec.stages.sft", "spec.stages.dpo.gate"}
