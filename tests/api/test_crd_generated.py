"""The committed CustomResourceDefinition is the one that the models make, and is well formed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field
from rlhf_api.base import Contract
from rlhf_api.crd import COLUMNS, crd, root_schema
from rlhf_api.status import StageStatus
from rlhf_api.structural import structural_schema

COMMITTED = Path(__file__).parents[2] / "crds" / "rlhf.dev_rlhfjobs.yaml"
SCHEMA = root_schema()


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema below a schema, with its path."""
    yield path, schema
    for name, item in schema.get("properties", {}).items():
        yield from nodes(item, f"{path}.{name}")
    for key, part in (("items", "[]"), ("additionalProperties", ".*")):
        if key in schema:
            yield from nodes(schema[key], path + part)


def at(path: str) -> dict[str, Any]:
    return dict(nodes(SCHEMA))[path]


def test_the_committed_definition_is_up_to_date() -> None:
    written = yaml.safe_load(COMMITTED.read_text(encoding="utf-8"))
    assert written == crd(), "run `make generate`"


def test_it_has_no_yaml_anchors() -> None:
    assert "&id" not in COMMITTED.read_text(encoding="utf-8")


def test_every_node_has_one_type() -> None:
    for path, node in nodes(SCHEMA):
        assert ("type" in node) != node.get("x-kubernetes-int-or-string", False), path
        assert not {"$ref", "anyOf", "allOf", "oneOf", "title"} & set(node), path


def test_whatever_is_written_is_bounded() -> None:
    bounds = {"string": "maxLength", "array": "maxItems"}
    for path, node in nodes(SCHEMA):
        if path in (".apiVersion", ".kind"):
            continue
        if "additionalProperties" in node:
            assert "maxProperties" in node, path
        elif node.get("type") in bounds and "enum" not in node:
            assert bounds[node["type"]] in node, path


def test_a_quantity_is_a_number_or_text() -> None:
    size = at(".spec.checkpoints.claim.size")
    assert size["x-kubernetes-int-or-string"]
    assert size["default"] == "100Gi"
    assert size["pattern"].startswith("^[0-9]+")


def test_defaults_cascade_and_an_optional_stage_stays_out() -> None:
    assert at(".spec.scheduling")["default"] == {"gang": "auto"}
    assert at(".spec.stages.ppo.kl")["default"] == {"coef": 0.02, "estimator": "k1"}
    assert at(".spec.stages.ppo.rewards")["default"] == {}
    assert "default" not in at(".spec.stages.ppo")
    assert "default" not in at(".spec.checkpoints.claim")


def test_null_is_kept_only_where_it_overrides_a_default() -> None:
    nullable = [path for path, node in nodes(SCHEMA) if node.get("nullable")]
    assert nullable == [".spec.stages.ppo.rollout.importanceCap"]


def test_a_bound_that_is_excluded_is_said_as_openapi_3_says_it() -> None:
    rate = at(".spec.stages.sft.learningRate")
    assert (rate["minimum"], rate["exclusiveMinimum"], rate["maximum"]) == (0, True, 1)


def test_items_of_lists_have_no_defaults_which_would_be_drift_for_ever() -> None:
    defaulted = [path for path, node in nodes(SCHEMA) if "[]" in path and "default" in node]
    assert [path for path in defaulted if path.startswith(".spec")] == []


def test_every_column_shows_a_field_that_is_there() -> None:
    known = dict(nodes(SCHEMA)).keys() | {".metadata.creationTimestamp"}
    assert {re.sub(r"\[[^]]*\]", "[]", path) for _, _, path, _, _ in COLUMNS} <= known


def test_kubectl_can_keep_the_whole_definition_in_an_annotation() -> None:
    assert len(json.dumps(crd())) < 262_144


def test_lists_whose_items_have_a_key_are_merged_by_it() -> None:
    assert at(".spec.env")["x-kubernetes-list-map-keys"] == ["name"]
    assert at(".status.conditions")["x-kubernetes-list-map-keys"] == ["type"]
    assert at(".spec.imagePullSecrets")["x-kubernetes-list-type"] == "set"


def test_what_kubernetes_takes_as_a_whole_is_atomic_here_as_well() -> None:
    atomic = {path for path, node in nodes(SCHEMA) if node.get("x-kubernetes-map-type") == "atomic"}
    assert ".spec.resources.nodeSelector" in atomic
    assert ".spec.env[].valueFrom.secretKeyRef" in atomic


def test_a_bound_that_the_api_server_would_misread_is_no_schema() -> None:
    class Half(Contract):
        share: float = Field(default=0.0, ge=0, lt=0.5, description="Cut to 0 by the API server.")

    with pytest.raises(ValueError, match="exclusiveMaximum"):
        structural_schema(Half, lambda model: [])


def test_a_union_that_a_custom_resource_cannot_have_is_no_schema() -> None:
    class Either(Contract):
        flag: bool | str = Field(default=False, description="No structural type.")

    with pytest.raises(TypeError, match="boolean"):
        structural_schema(Either, lambda model: [])


def test_a_new_job_is_not_taken_for_done() -> None:
    assert at(".status")["default"] == {"observedGeneration": -1}


def test_nothing_that_is_empty_is_kept_in_a_status() -> None:
    """Of four stages it would be a third of all fields, and each write of a job costs by them."""
    defaults = {path: node["default"] for path, node in nodes(SCHEMA) if "default" in node}
    kept = [path for path, value in defaults.items() if value in ([], {})]
    assert [path for path in kept if path.startswith(".status")] == []
    assert StageStatus(metrics={"kl": 0.5}).to_dict() == {
        "phase": "Pending",
        "attempt": 0,
        "faults": 0,
        "disruptions": 0,
        "gpus": 0,
        "metrics": {"kl": 0.5},
    }
