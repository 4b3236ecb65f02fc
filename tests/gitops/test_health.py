"""kstatus' own library and Argo CD's interpreter read each state of a job as they should."""

from __future__ import annotations

import subprocess
import sys

import pytest
from builders import World, begun
from judging import ARGOCD_CM, REPOSITORY, Object, Verdict, judge
from rlhf_api.job import RLHFJob
from rlhf_operator.names import ANNOTATION_APPROVE, ANNOTATION_RETRY_STAGE
from states import (
    OBJECTS,
    STATES,
    approval_needed,
    branch_failed,
    made,
    recorded,
    running,
    text,
    written,
)


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    return judge({state: recorded(state) for state in STATES})


@pytest.mark.parametrize("state", STATES)
def test_a_recorded_object_is_what_the_operator_makes(state: str) -> None:
    assert (OBJECTS / f"{state}.yaml").read_text("utf-8") == text(made(state))


@pytest.mark.parametrize("state", STATES)
def test_kstatus_computes(state: str, verdicts: dict[str, Verdict]) -> None:
    assert verdicts[state].kstatus == STATES[state][1].kstatus


@pytest.mark.parametrize("state", STATES)
def test_argo_cd_shows(state: str, verdicts: dict[str, Verdict]) -> None:
    assert verdicts[state].argo == STATES[state][1].argo


@pytest.mark.parametrize("state", STATES)
def test_argo_cd_offers(state: str, verdicts: dict[str, Verdict]) -> None:
    assert verdicts[state].offered == STATES[state][1].actions


def test_argo_cd_says_why_a_job_waits(verdicts: dict[str, Verdict]) -> None:
    said = {state: verdict.scripts["health"]["message"] for state, verdict in verdicts.items()}
    assert "insufficient nvidia.com/gpu" in said["waiting-for-devices"]
    assert "kubectl annotate rlhfjob tiny rlhf.dev/approve-reward=" in said["approval-needed"]
    assert "eval/accuracy of reward is 0.52, below 0.6." in said["gate-failed"]
    assert said["edited"] == said["fresh"] == "No operator has seen this generation yet."


def test_a_job_without_any_status_is_not_taken_for_done() -> None:
    bare = recorded("done") | {"status": None}
    (verdict,) = judge({"bare": bare}).values()
    assert verdict.argo == "Progressing"


def after(action: str, state: str) -> Object:
    """The object that an action makes of a recorded one."""
    found: Object = judge({state: recorded(state)}, action)[state].scripts[action]
    return found


def changed(action: str, state: str) -> Object:
    """Annotations that an action sets, and `suspend`, where it differs."""
    before, new = recorded(state), after(action, state)
    suspend = new["spec"].get("suspend")
    found = dict(new["metadata"].get("annotations", {}))
    return found if suspend == before["spec"].get("suspend") else found | {"suspend": suspend}


def test_suspend_and_resume_set_the_field() -> None:
    assert changed("suspend", "running") == {"suspend": True}
    assert changed("resume", "suspended") == {"suspend": False}


def test_approve_names_the_result_that_waits() -> None:
    result = recorded("approval-needed")["status"]["stages"]["reward"]
    assert changed("approve", "approval-needed") == {f"{ANNOTATION_APPROVE}reward": result["hash"]}


def test_approve_leaves_a_result_alone_that_its_metric_holds_back() -> None:
    held = recorded("approval-needed")
    held["spec"]["stages"]["reward"]["gate"]["min"] = 0.9
    made = judge({"held": held}, "approve")["held"].scripts["approve"]
    assert "annotations" not in made["metadata"]


def test_retry_names_the_attempts_that_failed() -> None:
    assert changed("retry", "branch-failed") == {f"{ANNOTATION_RETRY_STAGE}dpo": "1"}
    assert changed("retry", "prepare-failed") == {f"{ANNOTATION_RETRY_STAGE}prepare": "1"}


def acted(action: str, world: World) -> World:
    """The world once the API server has what an action made of the job."""
    made = judge({"job": written(world)}, action)["job"].scripts[action]
    plain = {name: made[name] for name in ("apiVersion", "kind", "metadata", "spec")}
    status = world.job.status
    world.job = RLHFJob.parse(plain).model_copy(update={"status": status})
    return world


def test_the_operator_does_what_suspend_and_resume_ask_for() -> None:
    world = acted("suspend", running())
    world.settle()
    world.gone().settle()
    assert world.status.phase == "Suspended"
    assert begun(acted("resume", world).settle()) == ["ppo", "dpo"]


def test_the_operator_does_what_approve_asks_for() -> None:
    world = approval_needed()
    assert begun(world.settle()) == []
    assert begun(acted("approve", world).settle()) == ["ppo"]


def test_the_operator_does_what_retry_asks_for_and_leaves_the_other_branch_alone() -> None:
    world = branch_failed()
    assert begun(world.settle()) == []
    assert begun(acted("retry", world).settle()) == ["dpo"]
    assert world.stage("ppo").attempt == 1


def test_the_patch_is_made_from_the_lua_files() -> None:
    words = [sys.executable, REPOSITORY / "gitops/argocd/configmap.py"]
    made = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert made == ARGOCD_CM.read_text("utf-8")
