"""A real API server refuses what the validator refuses, in the same words, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cluster.client import Client
from cluster.control_plane import ControlPlane
from field_cases import BEYOND_A_SCHEMA, REFUSED_FIELDS
from generated_jobs import KEYS, specs, statuses
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubernetes.client import ApiException
from longest_lists import LONGEST
from pydantic import ValidationError
from rlhf_api.base import digest
from rlhf_api.crd import crd
from rlhf_api.job import RLHFJob
from rlhf_api.status import JobStatus
from rlhf_api.validation import InvalidJob, Problem, parse_job
from rlhf_cli.yaml_text import read_document
from rule_cases import CASES, FULL, Case, manifest
from transition_cases import TRANSITIONS, TransitionCase

TERMS = "|".join(map(re.escape, KEYS))
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
DEFINITIONS = "apiextensions.k8s.io/v1/customresourcedefinitions"
JOBS = "rlhf.dev/v1alpha1/rlhfjobs"
PATH = "/apis/rlhf.dev/v1alpha1/namespaces/default/rlhfjobs"


class Answer(NamedTuple):
    """What the API server said: the object, or what is wrong with it by field."""

    accepted: dict[str, Any] | None
    causes: list[tuple[str, str]]


class Server:
    """The API server, asked with strict field validation and without storing anything."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def create(self, obj: dict[str, Any]) -> Answer:
        return self._ask("POST", PATH, obj)

    def replace(self, obj: dict[str, Any]) -> Answer:
        return self._ask("PUT", f"{PATH}/{obj['metadata']['name']}", obj)

    def _ask(self, method: str, path: str, obj: dict[str, Any]) -> Answer:
        query = {"dryRun": "All", "fieldValidation": "Strict"}
        try:
            return Answer(self.client.request(method, path, obj, query), [])
        except ApiException as error:
            if error.status not in (400, 422):
                raise
            body = json.loads(error.body)
            causes = body.get("details", {}).get("causes", [])
            told = [(cause["field"], cause["message"]) for cause in causes]
            return Answer(None, told or [("", body["message"])])


@pytest.fixture(scope="module")
def server(control_plane: ControlPlane) -> Server:
    control_plane.client.define(crd())
    return Server(control_plane.client)


@pytest.fixture
def stored(server: Server, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a job that the test may store."""
    name = "stored"
    yield name
    server.client.delete(JOBS, name, "default")
    server.client.wait_for(JOBS, name, lambda found: found is None, "default")


def problems(obj: dict[str, Any]) -> list[Problem]:
    try:
        parse_job(obj)
    except InvalidJob as error:
        return error.problems
    return []


def on_server(problem: Problem) -> tuple[str, str]:
    """Where and how the API server tells a problem that is a rule's."""
    path = re.sub(rf"(\.rewards)\.({TERMS})", r"\1[\2]", problem.path)
    return path, f"Invalid value: {problem.message} ({problem.allowed})"


def every_field_holds(obj: dict[str, Any]) -> bool:
    try:
        RLHFJob.parse(obj)
    except ValidationError:
        return False
    return True


def ids(cases: list[Case]) -> list[str]:
    return [f"{case.rule}-{number}" for number, case in enumerate(cases)]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_a_broken_rule_is_told_in_the_same_words_at_the_same_place(
    case: Case, server: Server
) -> None:
    obj = manifest(case.bad)
    answer = server.create(obj)
    assert answer.causes == [on_server(problem) for problem in problems(obj)]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_the_nearest_manifest_that_keeps_the_rule_is_taken(case: Case, server: Server) -> None:
    assert server.create(manifest(case.good)).causes == []


@pytest.mark.parametrize(("path", "value"), REFUSED_FIELDS)
def test_what_a_field_alone_forbids_is_refused_by_both(
    path: str, value: Any, server: Server
) -> None:
    obj = manifest({path: value})
    assert problems(obj)
    assert server.create(obj).accepted is None


@pytest.mark.parametrize(("path", "value"), BEYOND_A_SCHEMA)
def test_null_is_read_as_left_out_where_no_schema_can_refuse_it(
    path: str, value: Any, server: Server
) -> None:
    obj = manifest({path: value})
    assert problems(obj)
    accepted = server.create(obj).accepted
    assert accepted is not None
    assert problems(accepted) == []


@pytest.mark.parametrize("name", ["x" * 41, "a.b", "9-" * 20 + "x"])
def test_a_name_that_children_could_not_bear_is_refused(name: str, server: Server) -> None:
    obj = manifest({}) | {"metadata": {"name": name}}
    assert [problem.path for problem in problems(obj)] == ["metadata.name"]
    assert "metadata.name" in dict(server.create(obj).causes)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_spec_has_the_same_verdict(data: st.DataObject, server: Server) -> None:
    obj = FULL | {"spec": data.draw(specs(wrong=data.draw(st.booleans())))}
    told, answer = problems(obj), server.create(obj)
    assert (answer.accepted is None) == bool(told), (told, answer.causes)
    if every_field_holds(obj):
        assert sorted(answer.causes) == sorted(map(on_server, told))


def test_the_rules_of_the_longest_lists_are_within_the_budget(server: Server) -> None:
    obj = manifest(LONGEST)
    assert problems(obj) == []
    assert server.create(obj).causes == []


def test_defaults_of_the_server_are_those_of_the_models(server: Server) -> None:
    for case in CASES:
        given_by_user = manifest(case.good)
        accepted = server.create(given_by_user).accepted
        assert accepted is not None
        own = parse_job(given_by_user)
        assert accepted["spec"] == own.to_dict()["spec"]
        assert digest(parse_job(accepted).spec) == digest(own.spec)


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_every_example_is_taken(path: Path, server: Server) -> None:
    answer = server.create(read_document(path.read_text(encoding="utf-8")).value)
    assert answer.causes == []


def test_an_unread_job_is_not_taken_for_done(server: Server, stored: str) -> None:
    server.client.create(FULL | {"metadata": {"name": stored}}, "default")
    found = server.client.get(JOBS, stored, "default")
    assert found["status"]["observedGeneration"] == -1
    assert RLHFJob.parse(found).status == JobStatus()


@pytest.mark.parametrize("case", TRANSITIONS, ids=[case.name for case in TRANSITIONS])
def test_a_change_is_refused_where_the_field_is_immutable(
    case: TransitionCase, server: Server, stored: str
) -> None:
    before = manifest(case.before) | {"metadata": {"name": stored}}
    found = server.client.create(before, "default")
    after = found | {"spec": manifest(case.after)["spec"]}
    causes = server.replace(after).causes
    if case.refused is None:
        assert causes == []
    else:
        ((path, message),) = causes
        assert path == case.refused
        assert "is immutable" in message


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(status=statuses())
def test_any_status_of_the_models_is_kept(
    status: dict[str, Any], server: Server, stored_for_status: dict[str, Any]
) -> None:
    written = JobStatus.model_validate(status, by_alias=True, by_name=False).to_dict()
    path = f"{PATH}/{stored_for_status['metadata']['name']}/status"
    current = server.client.get(JOBS, stored_for_status["metadata"]["name"], "default")
    answer = server.client.request("PUT", path, current | {"status": written})
    assert answer["status"] == written


@pytest.fixture(scope="module")
def stored_for_status(server: Server) -> Iterator[dict[str, Any]]:
    yield server.client.create(FULL | {"metadata": {"name": "with-status"}}, "default")
    server.client.delete(JOBS, "with-status", "default")


def test_kubectl_shows_what_people_look_at(
    control_plane: ControlPlane, stored_for_status: dict[str, Any]
) -> None:
    wide = control_plane.kubectl("get", "rlhf", "-o", "wide")
    header = wide.splitlines()[0].split()
    assert header == ["NAME", "PHASE", "STAGE", "PROGRESS", "ETA", "REWARD", "KL", "AGE",
                      "REASON", "GPUS", "QUEUE", "RESTARTS", "CHECKPOINT"]  # fmt: skip
    assert "with-status" in control_plane.kubectl("get", "ml", "-n", "default")
