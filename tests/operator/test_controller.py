"""One pass: what it does in which order, and what it does where something refuses."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from builders import MANIFEST, NOON
from rlhf_api.job import RLHFJob
from rlhf_api.run import StageResult
from rlhf_api.status import CheckpointRef, Condition, JobStatus
from rlhf_operator.controller import Cluster, OutOfDate, Pass, Refused, reconcile_once
from rlhf_operator.events import Event
from rlhf_operator.names import JobKey
from rlhf_operator.observed import Attempt, Observed, Pod
from rlhf_operator.render import Platform

KEY = JobKey("default", "tiny")


class Recorder:
    """A cluster that only notes what is asked of it, in order."""

    platform = Platform(is_one_machine=True)

    def __init__(self, manifest: dict[str, Any] | None = None) -> None:
        self.manifest: dict[str, Any] | None = copy.deepcopy(manifest or MANIFEST)
        self.observed = Observed()
        self.said: list[str] = []
        self.refuses: dict[str, Exception] = {}

    async def load(self, key: JobKey) -> dict[str, Any] | None:
        return self.manifest

    async def observe(self, job: RLHFJob, now: object) -> Observed:
        return self.observed

    async def confirm(self, key: JobKey) -> None:
        if error := self.refuses.get("confirm"):
            raise error

    async def apply(self, job: RLHFJob, objects: Sequence[dict[str, Any]]) -> None:
        self._note("apply", objects[-1]["metadata"]["name"])

    async def delete(self, job: RLHFJob, stage: str, attempt: int) -> None:
        self._note("delete", f"{stage}-{attempt}")

    async def write_status(self, manifest: dict[str, Any], status: JobStatus) -> None:
        self._note("write", status.phase)
        assert self.manifest is not None
        self.manifest["status"] = status.to_dict()

    async def write_conditions(
        self, manifest: dict[str, Any], conditions: Sequence[Condition]
    ) -> None:
        self._note("write", "conditions")
        assert self.manifest is not None
        known = self.manifest.get("status")
        own = {"conditions": [item.to_dict() for item in conditions]}
        self.manifest["status"] = (known if isinstance(known, dict) else {}) | own

    async def emit(self, key: JobKey, happened: Sequence[Event]) -> None:
        for event in happened:
            self._note("emit", event.reason)

    def _note(self, verb: str, what: str) -> None:
        if error := self.refuses.get(verb) or self.refuses.get(f"{verb} {what}"):
            raise error
        self.said.append(f"{verb} {what}")

    def reconcile(self, **later: float) -> Pass:
        self.said.clear()
        cluster: Cluster = self
        return asyncio.run(reconcile_once(cluster, KEY, NOON + timedelta(**later)))

    def condition(self, kind: str) -> tuple[str, str, str]:
        assert self.manifest is not None
        found = next(c for c in self.manifest["status"]["conditions"] if c["type"] == kind)
        return found["status"], found["reason"], found["message"]


def test_the_attempt_is_written_down_before_its_children_are_made() -> None:
    cluster = Recorder()
    cluster.reconcile()
    assert [said for said in cluster.said if not said.startswith("emit")] == ["write Pending"]
    cluster.reconcile()
    assert cluster.said[0] == "apply tiny-prepare-1"


def test_children_of_an_attempt_that_was_not_just_written_wait_until_the_job_is_confirmed() -> None:
    """Watches of children may tell of a restored backup before that of jobs does."""
    cluster = Recorder()
    cluster.reconcile()
    cluster.refuses["confirm"] = OutOfDate("it is not what it was")
    with pytest.raises(OutOfDate):
        cluster.reconcile()
    assert cluster.said == []
    asyncio.run(reconcile_once(cluster, KEY, NOON, is_just_written=True))
    assert cluster.said == ["apply tiny-prepare-1"]


def test_nothing_is_written_where_nothing_changed() -> None:
    cluster = Recorder()
    for _ in range(3):
        cluster.reconcile()
    cluster.observed = Observed((Attempt("prepare", 1, *_wanted(cluster)),))
    cluster.reconcile()
    cluster.reconcile()
    assert cluster.said == []


def _wanted(cluster: Recorder) -> tuple[str, str]:
    assert cluster.manifest is not None
    prepare = cluster.manifest["status"]["prepare"]
    return prepare["hash"], prepare["settings"]


def test_what_is_in_the_way_is_deleted_before_anything_is_made() -> None:
    cluster = Recorder()
    cluster.reconcile()
    cluster.observed = Observed((Attempt("sft", 7, "sha256:x", "sha256:y"),))
    cluster.reconcile()
    assert cluster.said[:2] == ["delete sft-7", "apply tiny-prepare-1"]


def test_a_job_that_is_gone_is_left_alone() -> None:
    cluster = Recorder()
    cluster.manifest = None
    assert cluster.reconcile() == Pass(None, ())
    assert cluster.said == []


def test_a_manifest_that_admission_should_have_refused_is_a_condition() -> None:
    cluster = Recorder()
    assert cluster.manifest is not None
    cluster.manifest["spec"]["stages"]["sft"]["epochs"] = -1
    done = cluster.reconcile()
    assert cluster.condition("Stalled")[:2] == ("True", "InvalidSpec")
    assert "spec.stages.sft.epochs" in cluster.condition("Stalled")[2]
    assert (done.actions, done.retry_at) == ((), None)
    cluster.reconcile(minutes=5)
    assert cluster.said == []  # no retry loop


def under_way() -> Recorder:
    """SFT has begun."""
    cluster = Recorder()
    cluster.reconcile()
    cluster.observed = Observed((_done(cluster, "prepare"),))
    cluster.reconcile()
    assert _stage(cluster, "sft")["attempt"] == 1
    return cluster


def test_what_a_newer_operator_has_written_stays_while_an_older_one_leads() -> None:
    """Of two replicas the new one led, and ended again while the upgrade was under way."""
    cluster = under_way()
    assert cluster.manifest is not None
    status = cluster.manifest["status"]
    status["fair"] = {"share": 0.5}
    status["stages"]["sft"]["colour"] = "blue"
    status["prepare"]["ended"]["place"] = "rack 7"
    cluster.reconcile(minutes=1)
    assert cluster.said == ["apply tiny-sft-1"]
    cluster.observed = Observed((*cluster.observed.attempts, _done(cluster, "sft")))
    cluster.reconcile(minutes=2)
    status = cluster.manifest["status"]
    assert status["stages"]["sft"]["ended"]["kind"] == "Done"
    assert (status["fair"], status["prepare"]["ended"]["place"]) == ({"share": 0.5}, "rack 7")
    assert status["stages"]["sft"]["colour"] == "blue"


def accepted_by_older_rules() -> Recorder:
    """SFT is under way, and a newer operator has a rule that its spec breaks."""
    cluster = under_way()
    assert cluster.manifest is not None
    cluster.manifest["spec"]["stages"]["ppo"]["gate"] = {"metric": "eval/loss", "max": 1}
    cluster.manifest["metadata"]["generation"] = 1
    cluster.manifest["status"]["observedGeneration"] = 1
    return cluster


def test_a_job_that_older_rules_let_pass_goes_on_until_it_is_edited() -> None:
    """As the API server ratchets: what nobody touches is not asked for again."""
    cluster = accepted_by_older_rules()
    cluster.reconcile(minutes=1)
    assert cluster.condition("Stalled")[:2] != ("True", "InvalidSpec")
    cluster.observed = Observed((*cluster.observed.attempts, _done(cluster, "sft")))
    cluster.reconcile(minutes=2)
    assert _stage(cluster, "sft")["ended"]["kind"] == "Done"
    assert cluster.manifest is not None
    cluster.manifest["metadata"]["generation"] = 2
    for minutes in (3, 4):
        assert cluster.reconcile(minutes=minutes).actions == ()
        assert cluster.condition("Stalled")[:2] == ("True", "InvalidSpec")


@pytest.mark.parametrize("wish", ["suspend", "delete"])
def test_a_job_can_be_held_whatever_rules_it_breaks(wish: str) -> None:
    cluster = accepted_by_older_rules()
    cluster.observed = Observed((Attempt("sft", 1, "sha256:h", "sha256:s", pods=(Pod("p", 0),)),))
    assert cluster.manifest is not None
    cluster.manifest["metadata"]["generation"] = 2
    if wish == "suspend":
        cluster.manifest["spec"]["suspend"] = True
    else:
        cluster.manifest["metadata"] |= {
            "deletionTimestamp": "2026-01-31T12:00:00Z",
            "finalizers": ["another.dev/wait"],
        }
    cluster.reconcile(minutes=1)
    assert "delete sft-1" in cluster.said
    cluster.manifest["metadata"]["generation"] = 3
    cluster.manifest["spec"]["suspend"] = False
    for name in ("finalizers", "deletionTimestamp"):
        cluster.manifest["metadata"].pop(name, None)
    cluster.reconcile(minutes=2)
    assert cluster.condition("Stalled")[:2] == ("True", "InvalidSpec")


@pytest.mark.parametrize("true", ["Reconciling", "Ready", "Suspended"])
def test_a_status_of_another_version_that_cannot_be_read_is_not_lost(true: str) -> None:
    cluster = under_way()
    assert cluster.manifest is not None
    status = cluster.manifest["status"]
    status["stages"]["sft"]["ended"] = {"attempt": 1, "kind": "Lent", "reason": "x", "time": "x"}
    for condition in status["conditions"]:
        condition["status"] = str(condition["type"] == true)
    before = copy.deepcopy(status)
    for minutes in (1, 2):
        assert cluster.reconcile(minutes=minutes).actions == ()
        assert cluster.manifest["status"] | {"conditions": 0} == before | {"conditions": 0}
    assert cluster.said == []  # once is enough
    if true == "Reconciling":
        held, reason, said = cluster.condition("Stalled")
        assert (held, reason) == ("True", "StatusUnreadable")
        assert "status.stages.sft.ended.kind" in said
    else:  # nothing went on: nothing is to be said
        assert cluster.manifest["status"] == before


@pytest.mark.parametrize("true", ["Reconciling", "Ready", "Suspended", "Stalled"])
def test_a_newer_resource_under_an_older_operator_fails_no_job(true: str) -> None:
    """It fills in its defaults in jobs that were made before it, and is upgraded first."""
    cluster = under_way()
    assert cluster.manifest is not None
    for condition in cluster.manifest["status"]["conditions"]:
        condition["status"] = str(condition["type"] == true)
    before = copy.deepcopy(cluster.manifest["status"])
    cluster.manifest["spec"]["stages"]["sft"]["rehearsal"] = {"share": 0.0}
    for minutes in (1, 2):
        assert cluster.reconcile(minutes=minutes).actions == ()
    assert cluster.said == []
    if true == "Reconciling":
        held, reason, said = cluster.condition("Reconciling")
        assert (held, reason) == ("True", "ResourceIsNewer")
        assert "spec.stages.sft.rehearsal" in said
        assert cluster.manifest["status"]["stages"] == before["stages"]
    else:
        assert cluster.manifest["status"] == before
    del cluster.manifest["spec"]["stages"]["sft"]["rehearsal"]  # as to an operator that knows it
    cluster.reconcile(minutes=3)
    assert cluster.condition("Reconciling")[1] != "ResourceIsNewer"


@pytest.mark.parametrize("status", [7, "x", {"stages": 7}, {"conditions": [{"type": 1}]}])
def test_a_status_that_nobody_can_read_is_no_reason_to_break_off(status: Any) -> None:
    cluster = Recorder()
    assert cluster.manifest is not None
    cluster.manifest["status"] = status
    cluster.reconcile()
    assert cluster.condition("Stalled")[0] in ("True", "False")


@pytest.mark.parametrize("kind", ["Stalled", "Reconciling"])
def test_a_refusal_is_a_condition_and_is_tried_again(kind: Any) -> None:
    cluster = Recorder()
    cluster.reconcile()
    cluster.refuses["apply"] = Refused(kind, "NameTaken", "it is there already")
    done = cluster.reconcile()
    assert cluster.condition(kind) == ("True", "NameTaken", "it is there already")
    assert done.retry_at == NOON + timedelta(minutes=1)
    cluster.reconcile(minutes=1)
    assert cluster.said == []  # said once
    del cluster.refuses["apply"]
    cluster.reconcile(minutes=2)
    assert cluster.said[0] == "apply tiny-prepare-1"
    assert cluster.condition("Stalled")[0] == "False"


def test_a_stage_that_is_refused_holds_up_no_other() -> None:
    """PPO and DPO are two branches; of one a webhook does not take the pods."""
    made = copy.deepcopy(MANIFEST)
    made["spec"]["stages"] = {name: MANIFEST["spec"]["stages"][name] for name in ("reward", "dpo")}
    cluster = Recorder(made)
    cluster.reconcile()
    cluster.observed = Observed((_done(cluster, "prepare"),))
    cluster.reconcile()
    assert {_stage(cluster, name)["attempt"] for name in ("reward", "dpo")} == {1}
    cluster.refuses["apply tiny-reward-1"] = Refused("Stalled", "ChildRefused", "no")
    cluster.reconcile()
    assert cluster.said[0] == "apply tiny-dpo-1"
    cluster.observed = Observed((*cluster.observed.attempts, _done(cluster, "dpo")))
    cluster.reconcile(minutes=1)
    assert _stage(cluster, "dpo")["phase"] == "Succeeded"
    assert cluster.condition("Stalled") == ("True", "ChildRefused", "no")
    cluster.reconcile(minutes=2)
    assert cluster.said == []


def test_a_deletion_that_is_refused_is_told_and_holds_up_no_other_stage() -> None:
    """Policies of clusters deny deletions, and a webhook that is away fails them."""
    cluster = Recorder()
    cluster.reconcile()
    cluster.observed = Observed((Attempt("sft", 7, "sha256:x", "sha256:y"),))
    cluster.refuses["delete sft-7"] = Refused("Stalled", "Forbidden", "no")
    done = cluster.reconcile()
    assert cluster.said[0] == "apply tiny-prepare-1"
    assert cluster.condition("Stalled") == ("True", "Forbidden", "no")
    assert done.retry_at == NOON + timedelta(minutes=1)
    del cluster.refuses["delete sft-7"]
    cluster.reconcile(minutes=1)
    assert cluster.said[0] == "delete sft-7"
    assert cluster.condition("Stalled")[0] == "False"


def test_what_is_in_nobodys_way_and_cannot_be_deleted_is_told_beside_what_goes_on() -> None:
    """A ConfigMap of an attempt that is over: the job was told as failed, though all went well."""
    cluster = Recorder()
    cluster.reconcile()
    cluster.observed = Observed(left_over=(("sft", 7),))
    refused = Refused("Stalled", "ChildRefused", "Deleting ConfigMap tiny-sft-7: no")
    refused.is_in_the_way = False
    cluster.refuses["delete sft-7"] = refused
    done = cluster.reconcile()
    assert cluster.said[0] == "apply tiny-prepare-1"
    told = "prepare: Attempt 1 starts. Left behind: Deleting ConfigMap tiny-sft-7: no"
    assert cluster.condition("Reconciling") == ("True", "Starting", told)
    assert done.retry_at == NOON + timedelta(minutes=1)
    cluster.reconcile(minutes=1)
    assert cluster.said == ["apply tiny-prepare-1"]  # it is said once
    del cluster.refuses["delete sft-7"]
    cluster.reconcile(minutes=2)
    assert cluster.condition("Reconciling")[2] == "prepare: Attempt 1 starts."


def _stage(cluster: Recorder, name: str) -> dict[str, Any]:
    assert cluster.manifest is not None
    status = cluster.manifest["status"]
    found: dict[str, Any] = status["prepare"] if name == "prepare" else status["stages"][name]
    return found


def _done(cluster: Recorder, stage: str) -> Attempt:
    """Its first attempt, ended with a result."""
    wanted = _stage(cluster, stage)
    checkpoint = CheckpointRef(uri=stage, digest="sha256:1")
    result = StageResult(exit_code=0, reason="Done", checkpoint=checkpoint)
    pod = Pod(f"tiny-{stage}-1-0", 0, phase="Succeeded", exit_code=0, result=result)
    return Attempt(stage, 1, wanted["hash"], wanted["settings"], pods=(pod,), condition="Complete")


def test_a_pass_over_data_that_is_out_of_date_tells_nobody() -> None:
    cluster = Recorder()
    cluster.refuses["write"] = OutOfDate("409")
    with pytest.raises(OutOfDate):
        cluster.reconcile()
    assert cluster.said == []


def test_a_path_of_one_machine_is_refused_on_a_cluster() -> None:
    cluster = Recorder()
    cluster.platform = Platform()
    cluster.reconcile()
    cluster.reconcile()
    assert cluster.condition("Stalled")[:2] == ("True", "Unsupported")
    assert "models/base" in cluster.condition("Stalled")[2]
