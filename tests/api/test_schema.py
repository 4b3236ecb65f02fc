"""The JSON schema agrees with the models on what it can say."""

from __future__ import annotations

import jsonschema
import pytest
from rlhf_api.schema import job_schema
from rule_cases import FULL, manifest

SCHEMA = job_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_a_valid_manifest_fits_the_schema() -> None:
    VALIDATOR.validate(FULL)


@pytest.mark.parametrize(
    "changes",
    [
        {"stages.sft.epochs": 0},
        {"stages.sft.learning_rate": 0.1},
        {"stages.sft.trainOn": "answer"},
        {"stages.ppo.kl": {"coef": "high"}},
    ],
)
def test_what_one_field_forbids_does_not_fit_the_schema(changes: dict[str, object]) -> None:
    assert not VALIDATOR.is_valid(manifest(changes))


def test_the_schema_has_no_status_and_no_unused_definition() -> None:
    assert "status" not in SCHEMA["properties"]
    assert "JobStatus" not in SCHEMA["$defs"]
    assert {"JobSpec", "PPOStage"} <= set(SCHEMA["$defs"])
