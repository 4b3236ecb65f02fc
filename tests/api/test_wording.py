"""What a user is told of each kind of mistake: where, what is wrong, what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
from rlhf_api.validation import InvalidJob, Problem, parse_job
from rule_cases import FULL, REMOVE, manifest

SFT = "stages.sft"


def only_problem(changes: dict[str, Any]) -> Problem:
    with pytest.raises(InvalidJob) as caught:
        parse_job(manifest(changes))
    (problem,) = caught.value.problems
    return problem


QUANTITY = "a whole number of at least 0 or a quantity such as 500m, 16 or 64Gi"
EPOCHS = "a number above 0 and up to 1,000"
ROWS = "a whole number from 1 to 65,536"
TAINTS = "one of NoSchedule, PreferNoSchedule, NoExecute"
EVALUATION = "prompts, limit, shown, maxNewTokens, temperature, stop, score"
IMAGE = "text without spaces, at most 512 characters"
IN_QUOTES = f"{QUANTITY}, at most 32 characters; for example 16; text stands in quotes"
TEXT = "text without control characters, at most 1,024 characters"

TOLD: list[tuple[str, Any, str, str]] = [
    ("sft.epochs", "3", "'3' is not allowed here", EPOCHS),
    ("sft.epochs", 0, "0 is too small", EPOCHS),
    ("sft.epochs", float("nan"), "nan is not allowed here", EPOCHS),
    ("sft.epochs", float("inf"), "inf is not allowed here", EPOCHS),
    ("sft.epochs", None, "has no value", f"{EPOCHS}; leave it out for the default 1.0"),
    ("sft.microBatchSize", 0, "0 is too small", ROWS),
    ("sft.microBatchSize", 10**400, "a number of too many digits is too large", ROWS),
    ("sft.microBatchSize", 2.0, "2.0 is not allowed here", ROWS),
    ("sft.microBatchSize", True, "true is not allowed here", ROWS),
    ("sft.packing", "yes", "'yes' is not allowed here", "true or false"),
    ("sft.trainOn", "answer", "'answer' is not allowed here", "one of answers, all"),
    ("sft.zero.stage", 4, "4 is not allowed here", "one of 0, 1, 2, 3"),
    ("sft.lora.dropout", 1.0, "1.0 is too large", "a number from 0 and below 1"),
    ("sft.data", REMOVE, "is missing", "a mapping with source"),
    ("sft.learning_rate", 0.1, "is not a known field", "did you mean learningRate?"),
    ("sft.LearningRate", 0.1, "is not a known field", "did you mean learningRate?"),
    ("sft.lerningRate", 0.1, "is not a known field", "did you mean learningRate?"),
    ("sft.gate", [1], "a list is not allowed here", "a mapping"),
    ("sft.secrets", [{"name": "a"}, {"name": "a"}], "names a twice", "each of them once"),
    ("sft.command", [], "an empty list is not allowed here", "a list that is not empty"),
]
ELSEWHERE: list[tuple[str, Any, str, str, str]] = [
    ("model.source", "", "model.source", "is empty", TEXT),
    ("model.source", "a\0b", "model.source", "'a\\x00b' is not allowed here", TEXT),
    (
        "evaluation",
        {"prompts": {"source": "p"}, "xyzzy": 1},
        "evaluation.xyzzy",
        "is not a known field",
        f"known here: {EVALUATION}",
    ),
    (
        "resources",
        {"device": "cpu"},
        "resources.device",
        "'cpu' is not allowed here",
        "an extended resource, DOMAIN/NAME, at most 253 characters; for example nvidia.com/gpu",
    ),
    (
        "resources",
        {"topology": {"level": "a b"}},
        "resources.topology.level",
        "'a b' is not allowed here",
        "a label's name",
    ),
    (
        "checkpoints",
        {"uri": "ftp://models"},
        "checkpoints.uri",
        "'ftp://models' is not allowed here",
        "s3://BUCKET/FOLDER or gs://BUCKET/FOLDER",
    ),
    ("image", True, "image", "true is not allowed here", f"{IMAGE}; text stands in quotes"),
    ("resources", {"cpu": 1.5}, "resources.cpu", "1.5 is not allowed here", IN_QUOTES),
    ("resources", {"cpu": -1}, "resources.cpu", "-1 is too small", QUANTITY),
    ("resources", {"memory": "5 x"}, "resources.memory", "'5 x' is not allowed here", QUANTITY),
    (
        "resources",
        {"tolerations": [{"key": 3}]},
        "resources.tolerations[0].key",
        "3 is not allowed here",
        "a label's name",
    ),
    (
        "resources",
        {"tolerations": [{"key": "a", "effect": "No"}]},
        "resources.tolerations[0].effect",
        "'No' is not allowed here",
        TAINTS,
    ),
    (
        "checkpoints",
        {"subPath": "../../etc"},
        "checkpoints.subPath",
        "'../../etc' is not allowed here",
        "text that matches",
    ),
]


@pytest.mark.parametrize(("field", "value", "message", "allowed"), TOLD)
def test_a_mistake_in_a_stage_is_told_in_plain_words(
    field: str, value: Any, message: str, allowed: str
) -> None:
    expected = Problem(f"spec.stages.{field}", message, allowed)
    assert only_problem({f"stages.{field}": value}) == expected


@pytest.mark.parametrize(("field", "value", "path", "message", "allowed"), ELSEWHERE)
def test_a_mistake_elsewhere_is_told_in_plain_words(
    field: str, value: Any, path: str, message: str, allowed: str
) -> None:
    problem = only_problem({field: value})
    assert problem[:2] == (f"spec.{path}", message)
    assert problem.allowed.startswith(allowed)


def test_all_mistakes_are_told_at_once() -> None:
    changes = {f"{SFT}.epochs": 0, f"{SFT}.packing": 1, "seed": -1, "stages.ppo.minibatchSize": 7}
    with pytest.raises(InvalidJob) as caught:
        parse_job(manifest(changes))
    told = {problem.path for problem in caught.value.problems}
    assert told == {f"spec.{path}" for path in changes}


@pytest.mark.parametrize("obj", [None, 3, "text", [FULL], True])
def test_a_manifest_that_is_no_mapping_is_refused(obj: object) -> None:
    with pytest.raises(InvalidJob, match="is not a mapping"):
        parse_job(obj)


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("annotations", "a: b", ""),
        ("annotations", ["a"], ""),
        ("annotations", {"rlhf.dev/retry-sft": 3}, ".rlhf.dev/retry-sft"),
        ("labels", {"team": 7}, ".team"),
        ("labels", {"team": "two words"}, ".team"),
    ],
)
def test_metadata_that_an_api_server_would_refuse_is_refused(
    field: str, value: object, path: str
) -> None:
    job = {**FULL, "metadata": {**FULL["metadata"], field: value}}
    with pytest.raises(InvalidJob, match="is not allowed here") as caught:
        parse_job(job)
    assert [problem.path for problem in caught.value.problems] == [f"metadata.{field}{path}"]


def test_a_long_value_is_cut_in_the_message() -> None:
    problem = only_problem({f"{SFT}.trainOn": "x" * 100_000})
    assert len(str(problem)) < 200


def test_a_lone_surrogate_is_refused_as_no_text() -> None:
    assert "not valid Unicode" in only_problem({"model.source": "\ud800"}).message
