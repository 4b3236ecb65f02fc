"""What Kueue says of the Jobs that it holds back reaches the status, in its words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, succeed
from cluster_jobs import Jobs, condition, manifest, wait_until
from operator_process import OperatorProcess
from operator_rights import limited
from rlhf_operator import kueue
from rlhf_operator.cache import Cache, slim
from rlhf_operator.names import JobKey
from structural import CRDS, problems

Object = dict[str, Any]
WORKLOADS = "kueue.x-k8s.io/v1beta2/workloads"
NOW = "2026-01-31T12:00:00Z"
NO_QUOTA = (
    "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in "
    "flavor default, 8 more needed"
)


def told(kind: str, status: str, reason: str, message: str = "") -> Object:
    base = {"type": kind, "status": status, "reason": reason, "message": message}
    return base | {"lastTransitionTime": NOW}


def check(state: str, message: str = "") -> Object:
    return {"name": "budget", "state": state, "message": message, "lastTransitionTime": NOW}


PENDING = told("QuotaReserved", "False", "Pending", NO_QUOTA)
RESERVED = told("QuotaReserved", "True", "QuotaReserved", "Quota reserved in ClusterQueue a")
NO_QUEUE = told("QuotaReserved", "False", "Inadmissible", "LocalQueue research doesn't exist")
PREEMPTED = told("Evicted", "True", "Preempted", "Preempted to accommodate a workload (UID: 1).")
RETURNED = told("Evicted", "False", "Requeued", "Backoff finished")


def workload(of: Object, *conditions: Object, checks: tuple[Object, ...] = ()) -> Object:
    """As Kueue makes it for a Job."""
    meta = of["metadata"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "controller": True}
    return {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "Workload",
        "metadata": {
            "name": f"job-{meta['name']}-1a2b3",
            "namespace": meta["namespace"],
            "labels": {"kueue.x-k8s.io/job-uid": meta["uid"]},
            "ownerReferences": [{**owner, "name": meta["name"], "uid": meta["uid"]}],
        },
        "spec": {"queueName": "research"},
        "status": {"conditions": list(conditions), "admissionChecks": list(checks)},
    }


def a_child(name: str = "tiny-sft-1") -> Object:
    return {"metadata": {"name": name, "namespace": "team", "uid": f"uid-of-{name}"}}


@pytest.mark.parametrize(
    ("conditions", "checks", "said"),
    [
        ([], [], ""),
        ([PENDING], [], NO_QUOTA),
        ([NO_QUEUE], [], "LocalQueue research doesn't exist"),
        ([PREEMPTED, PENDING], [], f"Preempted to accommodate a workload (UID: 1). {NO_QUOTA}"),
        ([RETURNED, PENDING], [], NO_QUOTA),
        ([RESERVED], [check("Pending")], "admission check budget is Pending: "),
        ([RESERVED], [check("Retry", "over it.")], "admission check budget is Retry: over it"),
        ([RESERVED], [check("Ready")], ""),
        ([RESERVED, told("Admitted", "True", "Admitted")], [check("Pending")], ""),
    ],
)
def test_the_words_of_a_workload(conditions: list[Object], checks: list[Object], said: str) -> None:
    made = workload(a_child(), *conditions, checks=tuple(checks))
    assert problems(made) == []
    assert (
        kueue.words([workload(a_child("other-sft-1"), NO_QUEUE), made], "uid-of-tiny-sft-1") == said
    )


DEACTIVATED = told(
    "Evicted", "True", "DeactivatedDueToRequeuingLimitExceeded",
    "The workload is deactivated due to exceeding the maximum number of re-queuing retries",
)  # fmt: skip


def test_a_workload_that_is_deactivated_tells_how_the_job_goes_on() -> None:
    made = workload(a_child(), DEACTIVATED)
    made["spec"]["active"] = False
    assert problems(made) == []
    made["metadata"] |= {"uid": "of-workload", "resourceVersion": "5"}
    said = kueue.words([slim(made)], "uid-of-tiny-sft-1")
    assert said == (
        f"{DEACTIVATED['message']}. It waits for no quota: suspend and resume the RLHFJob, "
        "or set spec.active of the Workload job-tiny-sft-1-1a2b3 to true"
    )


TOO_LATE = "Exceeded the PodsReady timeout team/job-tiny-sft-1-1a2b3"


@pytest.mark.parametrize(
    ("requeued", "said"),
    [("False", f"{TOO_LATE}. It is queued again at {NOW}"), ("True", TOO_LATE)],
)
def test_a_workload_that_kueue_makes_wait_tells_until_when(requeued: str, said: str) -> None:
    """Up to an hour after pods that were not ready in time."""
    evicted = told("Evicted", "True", "PodsReadyTimeout", TOO_LATE)
    again = told("Requeued", requeued, "PodsReadyTimeout", TOO_LATE)
    made = workload(a_child(), evicted, again, told("QuotaReserved", "False", "Pending", TOO_LATE))
    made["status"]["requeueState"] = {"count": 2, "requeueAt": NOW}
    assert problems(made) == []
    made["metadata"] |= {"uid": "of-workload", "resourceVersion": "5"}
    assert kueue.words([slim(made)], "uid-of-tiny-sft-1") == said


@pytest.mark.parametrize(
    ("name", "job"),
    [
        ("tiny-sft-1", "tiny"),
        ("a-b-prepare-12", "a-b"),
        ("nightly-batch-1", None),
        ("sft-1", None),
        ("tiny-sft-x", None),
        ("tiny", None),
    ],
)
def test_a_workload_belongs_to_the_rlhfjob_whose_attempt_its_job_is(
    name: str, job: str | None
) -> None:
    assert kueue.rlhfjob_of(workload(a_child(name))) == job


def test_a_workload_wakes_its_job_and_nobody_else_s_is_kept() -> None:
    woken: list[JobKey] = []
    cache = Cache(woken.append)
    for name in ("tiny-sft-1", "nightly-batch-1"):
        item = workload(a_child(name), PENDING)
        item["metadata"] |= {"uid": f"workload-of-{name}", "resourceVersion": "5"}
        cache.put(item)
    assert woken == [JobKey("team", "tiny")]
    assert cache.known() == {JobKey("team", "tiny")}


@pytest.fixture
def queues(installed: ControlPlane) -> Iterator[None]:
    """An API server that serves Kueue's Workloads; the test does what Kueue does."""
    crd = yaml.safe_load((CRDS / "kueue.yaml").read_text("utf-8"))
    where = ("apiextensions.k8s.io/v1/customresourcedefinitions", crd["metadata"]["name"])
    installed.client.define(crd)
    yield
    installed.client.delete(*where)
    installed.client.wait_for(*where, lambda found: found is None)


def says(jobs: Jobs, text: str) -> Callable[[Object | None], bool]:
    def is_told(job: Object | None) -> bool:
        found = ((job or {}).get("status") or {}).get("conditions") or []
        return any(c["type"] == "Scheduled" and text in c["message"] for c in found)

    return is_told


def hold_back(jobs: Jobs, *conditions: Object, active: bool = True) -> tuple[Object, Object]:
    """A job whose sft waits in a queue: the Job that Kueue holds back, and Kueue's Workload."""
    made = manifest(jobs.namespace, stages="sft")
    made["spec"]["scheduling"] = {"queue": "research", "gang": "kueue"}
    jobs.create(made)
    wait_until(lambda: len(jobs.children("batch/v1/jobs")) == 2)
    (held,) = jobs.client.list("batch/v1/jobs", jobs.namespace, labels="rlhf.dev/stage=sft")
    assert held["spec"]["suspend"] is True
    own = workload(held, *conditions)
    own["spec"]["active"] = active
    jobs.client.create(own)
    body = {"status": own["status"]}
    name = own["metadata"]["name"]
    jobs.client.patch(WORKLOADS, name, body, jobs.namespace, subresource="status")
    return held, own


@pytest.fixture
def queued(
    installed: ControlPlane,
    queues: None,
    jobs: Jobs,
    run_operator: Callable[..., OperatorProcess],
    play: Callable[..., Kubelet],
) -> Jobs:
    """Jobs of an operator that has the rights of a namespace, where Kueue's objects are known."""
    play(succeed)
    run_operator(kubeconfig=limited(installed, jobs.namespace))
    return jobs


def test_a_job_that_kueue_holds_back_says_why_and_runs_once_it_is_admitted(queued: Jobs) -> None:
    jobs = queued
    held, own = hold_back(jobs, PENDING)
    named = (WORKLOADS, own["metadata"]["name"])
    job = jobs.wait(says(jobs, NO_QUOTA))
    assert condition(job, "Scheduled") == ("False", "QueueAdmission")
    checked = {"conditions": [RESERVED], "admissionChecks": [check("Pending", "asks for nodes")]}
    jobs.client.patch(*named, {"status": checked}, jobs.namespace, subresource="status")
    jobs.wait(says(jobs, "admission check budget is Pending: asks for nodes"))
    body = {"spec": {"suspend": False}}
    jobs.client.patch("batch/v1/jobs", held["metadata"]["name"], body, jobs.namespace)
    jobs.wait_ready()
    assert jobs.attempts() == {"sft": 1}


def test_a_job_that_kueue_deactivated_goes_on_once_it_is_suspended_and_resumed(
    queued: Jobs,
) -> None:
    jobs = queued
    hold_back(jobs, DEACTIVATED, active=False)
    jobs.wait(says(jobs, "suspend and resume the RLHFJob"))
    jobs.patch({"spec": {"suspend": True}})
    labels = "rlhf.dev/stage=sft"
    wait_until(lambda: not jobs.client.list("batch/v1/jobs", jobs.namespace, labels=labels))
    jobs.patch({"spec": {"suspend": False}})
    wait_until(lambda: len(jobs.children("batch/v1/jobs")) == 2)
    (again,) = jobs.client.list("batch/v1/jobs", jobs.namespace, labels=labels)
    body = {"spec": {"suspend": False}}
    jobs.client.patch("batch/v1/jobs", again["metadata"]["name"], body, jobs.namespace)
    jobs.wait_ready()
    assert jobs.attempts() == {"sft": 2}
