"""kstatus' own library and Argo CD's interpreter read each state of a job as they should."""

from __future__ import annotations

import subprocess
import sys

import pytest
from judging import ARGOCD_CM, REPOSITORY, Object, Verdict, judge
from rlhf_operator.names import ANNOTATION_APPROVE
from states import OBJECTS, STATES, made, recorded, text


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
    assert changed("retry", "branch-failed") == {"rlhf.dev/retry-dpo": "1"}
    assert changed("retry", "prepare-failed") == {"rlhf.dev/retry-prepare": "1"}


def test_the_patch_is_made_from_the_lua_files() -> None:
    words = [sys.executable, REPOSITORY / "gitops/argocd/configmap.py"]
    made = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert made == ARGOCD_CM.read_text("utf-8")
