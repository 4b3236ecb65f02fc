"""What Kubernetes objects say, as a kubelet, a scheduler and a Job controller leave them."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rlhf_operator.observe import attempts, left_over
from rlhf_operator.observe_pod import next_look, pod
from rlhf_operator.observed import Pod
from rlhf_operator.outcome import outcome_of
from rlhf_operator.waiting import waiting

NOON = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
OURS = "uid-of-the-rlhfjob"
DONE = '{"exitCode": 0, "reason": "Done", "checkpoint": {"uri": "a/b", "digest": "sha256:1"}}'


def labels(stage: str = "sft", attempt: str = "1") -> dict[str, str]:
    return {"rlhf.dev/job": "tiny", "rlhf.dev/stage": stage, "rlhf.dev/attempt": attempt}


def owner(kind: str, name: str, uid: str) -> list[dict[str, Any]]:
    return [{"kind": kind, "name": name, "uid": uid, "controller": True}]


def a_pod(index: int = 0, phase: str = "Running", **status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"tiny-sft-1-{index}-abcde",
            "namespace": "team",
            "labels": labels(),
            "annotations": {
                "batch.kubernetes.io/job-completion-index": str(index),
                "rlhf.dev/input-hash": "sha256:h",
                "rlhf.dev/settings": "sha256:s",
            },
            "ownerReferences": owner("Job", "tiny-sft-1", "uid-of-the-job"),
        },
        "spec": {"nodeName": "node-a"},
        "status": {"phase": phase, **status},
    }


def a_job(*conditions: dict[str, str], size: int = 1, uid: str = OURS) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": "tiny-sft-1",
            "namespace": "team",
            "uid": "uid-of-the-job",
            "labels": labels(),
            "annotations": {"rlhf.dev/input-hash": "sha256:h", "rlhf.dev/settings": "sha256:s"},
            "ownerReferences": owner("RLHFJob", "tiny", uid),
        },
        "spec": {
            "completions": size,
            "template": {"spec": {"terminationGracePeriodSeconds": 120}},
        },
        "status": {"conditions": list(conditions)},
    }


def terminated(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    """How a container ended: the trainer, unless another name is put in place of it."""
    state = {"exitCode": code, "reason": reason, "finishedAt": "2026-01-31T12:00:00Z"}
    ended = {"terminated": state | ({"message": message} if message else {})}
    return {"name": "trainer", "state": ended}


def condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


FAILED = condition("Failed", "True", "BackoffLimitExceeded")
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a pod that succeeded says what it made": (
        a_pod(phase="Succeeded", containerStatuses=[terminated(0, "Completed", DONE)]),
        {"phase": "Succeeded", "exit_code": 0, "reason": None, "finished_at": NOON.timestamp()},
    ),
    "a plain failure has an exit code and the end of its log": (
        a_pod(phase="Failed", containerStatuses=[terminated(75, "Error", "peer lost")]),
        {"exit_code": 75, "reason": None, "message": "peer lost", "result": None},
    ),
    "a container that ran out of memory": (
        a_pod(phase="Failed", containerStatuses=[terminated(137, "OOMKilled")]),
        {"exit_code": 137, "reason": "OOMKilled", "is_disrupted": False},
    ),
    "an eviction by the kubelet is a disruption, in its own words": (
        a_pod(
            phase="Failed",
            reason="Evicted",
            message="The node was low on resource: memory.",
            conditions=[condition("DisruptionTarget", "True", "TerminationByKubelet")],
            containerStatuses=[terminated(137)],
        ),
        {
            "reason": "Evicted",
            "message": "The node was low on resource: memory.",
            "is_disrupted": True,
        },
    ),
    "preemption by the scheduler": (
        a_pod(
            phase="Failed",
            conditions=[condition("DisruptionTarget", "True", "PreemptionByScheduler", "for x")],
            containerStatuses=[terminated(143)],
        ),
        {"reason": "PreemptionByScheduler", "is_disrupted": True, "message": "for x"},
    ),
    "a disruption that did not come about is none": (
        a_pod(
            phase="Failed",
            conditions=[condition("DisruptionTarget", "False", "EvictionByEvictionAPI")],
            containerStatuses=[terminated(1)],
        ),
        {"is_disrupted": False, "reason": None, "exit_code": 1},
    ),
    "no node fits: the scheduler's words": (
        a_pod(
            phase="Pending",
            conditions=[
                condition("PodScheduled", "False", "Unschedulable", "0/3 nodes are available")
            ],
        ),
        {"reason": "Unschedulable", "message": "0/3 nodes are available"},
    ),
    "held back by a scheduling gate": (
        a_pod(phase="Pending", conditions=[condition("PodScheduled", "False", "SchedulingGated")]),
        {"reason": "SchedulingGated"},
    ),
    "an image that cannot be pulled": (
        a_pod(
            phase="Pending",
            containerStatuses=[
                {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
            ],
        ),
        {"reason": "ImagePullBackOff", "message": "no such image"},
    ),
    "a ConfigMap that is not there": (
        a_pod(
            phase="Pending",
            containerStatuses=[{"state": {"waiting": {"reason": "CreateContainerConfigError"}}}],
        ),
        {"reason": "CreateContainerConfigError"},
    ),
    "a container that is being made waits for nothing": (
        a_pod(
            phase="Pending",
            containerStatuses=[{"state": {"waiting": {"reason": "ContainerCreating"}}}],
        ),
        {"reason": None, "phase": "Pending"},
    ),
    "a node that does not answer": (
        a_pod(
            conditions=[condition("Ready", "False"), condition("ContainersReady", "True")],
        ),
        {"reason": "NodeLost", "phase": "Running", "is_lost": True, "is_live": True},
    ),
    "a pod that is not ready yet is not lost": (
        a_pod(conditions=[condition("Ready", "False"), condition("ContainersReady", "False")]),
        {"reason": None, "is_lost": False},
    ),
    "a pod that a readiness gate keeps from being ready is not lost": (
        a_pod(
            conditions=[
                condition("Ready", "False", "ReadinessGatesNotReady"),
                condition("ContainersReady", "True"),
            ],
        ),
        {"reason": None, "is_lost": False},
    ),
    "of two containers that failed ours is the cause": (
        a_pod(
            phase="Failed",
            containerStatuses=[
                {**terminated(1), "name": "proxy"},
                terminated(64, message="bad data"),
            ],
        ),
        {"exit_code": 64, "message": "bad data"},
    ),
    "a container that a webhook added may be the only one that failed": (
        a_pod(
            phase="Failed",
            containerStatuses=[
                {**terminated(64), "name": "proxy"},
                terminated(0, "Completed", DONE),
            ],
        ),
        {"phase": "Succeeded", "exit_code": 0, "reason": None, "message": DONE},
    ),
    "what the kubelet ended has failed, whatever its exit code": (
        a_pod(
            phase="Failed",
            reason="Evicted",
            containerStatuses=[
                {**terminated(137), "name": "proxy"},
                terminated(0, "Completed"),
            ],
        ),
        {"phase": "Failed", "reason": "Evicted"},
    ),
    "an init container that a webhook added has failed, and the trainer never began": (
        a_pod(
            phase="Failed",
            initContainerStatuses=[{**terminated(64, message="no iptables"), "name": "mesh"}],
            containerStatuses=[
                {"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}
            ],
        ),
        {
            "phase": "Failed",
            "exit_code": None,
            "reason": "ContainerFailed",
            "message": "mesh, which a webhook added, ended with exit code 64. no iptables",
        },
    ),
    "a sidecar of Kubernetes' own kind is killed once the trainer has ended": (
        a_pod(
            phase="Succeeded",
            initContainerStatuses=[{**terminated(137), "name": "mesh"}],
            containerStatuses=[terminated(0, "Completed", DONE)],
        ),
        {"phase": "Succeeded", "exit_code": 0, "message": DONE},
    ),
    "a pod that its node does not take, as its device plug-in is away": (
        a_pod(phase="Failed", reason="UnexpectedAdmissionError", message="no healthy devices"),
        {
            "reason": "UnexpectedAdmissionError",
            "message": "no healthy devices",
            "is_disrupted": True,
        },
    ),
    "a node that another pod was faster on": (
        a_pod(phase="Failed", reason="OutOfnvidia.com/gpu"),
        {"is_disrupted": True},
    ),
    "a machine that was started anew, as containerd tells it": (
        a_pod(phase="Failed", containerStatuses=[terminated(255, "Unknown")]),
        {
            "reason": "ContainerStatusUnknown",
            "message": "Nobody saw it end: its machine was started anew, or is another now.",
            "is_disrupted": True,
        },
    ),
    "a machine whose disk is another, as the kubelet tells it": (
        a_pod(
            phase="Failed",
            containerStatuses=[terminated(137, "ContainerStatusUnknown", "could not be located")],
        ),
        {
            "reason": "ContainerStatusUnknown",
            "message": "could not be located",
            "is_disrupted": True,
        },
    ),
    "an eviction after which the container is gone": (
        a_pod(
            phase="Failed",
            reason="Evicted",
            containerStatuses=[terminated(137, "ContainerStatusUnknown")],
        ),
        {"reason": "Evicted", "is_disrupted": False},
    ),
    "a pod that used more of the disk than it may": (
        a_pod(phase="Failed", reason="Evicted", containerStatuses=[terminated(137)]),
        {"reason": "Evicted", "is_disrupted": False},
    ),
    "a pod runs on for a container that a webhook added": (
        a_pod(
            containerStatuses=[
                {"name": "proxy", "state": {"running": {}}},
                terminated(0, "Completed"),
            ]
        ),
        {"phase": "Running", "outlived_by": ("proxy",)},
    ),
    "beside a trainer that runs others may run": (
        a_pod(
            containerStatuses=[
                {"name": "proxy", "state": {"running": {}}},
                {"name": "trainer", "state": {"running": {}}},
            ]
        ),
        {"outlived_by": ()},
    ),
    "a phase that we do not know is no end": (
        a_pod(phase="Paused"),
        {"phase": "Unknown", "is_live": True},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_pod_is_read_as_it_was_described(case: str) -> None:
    item, expected = CASES[case]
    seen = pod(item, NOON)
    assert {name: getattr(seen, name) for name in expected} == expected


def test_the_termination_message_is_the_result() -> None:
    seen = pod(CASES["a pod that succeeded says what it made"][0], NOON)
    assert seen.result is not None
    assert seen.result.checkpoint is not None
    assert seen.result.checkpoint.digest == "sha256:1"


def test_what_was_said_of_a_pod_without_a_node_that_is_deleted_holds_no_longer() -> None:
    said = condition("PodScheduled", "False", "Unschedulable", "waiting for minCount pods")
    item = a_pod(phase="Pending", conditions=[said])
    del item["spec"]["nodeName"]
    item["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    seen = pod(item, NOON + timedelta(minutes=5))
    assert (seen.reason, seen.is_lost) == ("Terminating", False)
    assert seen.message == "tiny-sft-1-0-abcde was deleted, and has yet to go"


def test_a_deletion_that_is_overdue_is_a_lost_node() -> None:
    item = a_pod()
    item["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"  # when the grace period ends
    assert pod(item, NOON + timedelta(seconds=29)).reason is None
    assert pod(item, NOON + timedelta(seconds=31)).is_lost
    assert next_look([item], NOON) == NOON + timedelta(seconds=30)
    assert next_look([item], NOON + timedelta(seconds=31)) is None


def test_a_job_with_pods_is_an_attempt() -> None:
    (attempt,) = attempts("tiny", OURS, [a_job(size=2)], [a_pod(1), a_pod(0)], NOON)
    assert (attempt.stage, attempt.number, attempt.size) == ("sft", 1, 2)
    assert (attempt.hash, attempt.settings) == ("sha256:h", "sha256:s")
    assert [p.completion_index for p in attempt.pods] == [0, 1]
    assert attempt.condition is None
    assert not attempt.is_terminating


def test_the_job_controller_says_when_all_is_over() -> None:
    ended = a_pod(phase="Failed", containerStatuses=[terminated(1)])
    target = condition("FailureTarget", "True", "BackoffLimitExceeded")
    (still,) = attempts("tiny", OURS, [a_job(target)], [ended], NOON)
    (over,) = attempts("tiny", OURS, [a_job(target, FAILED)], [ended], NOON)
    assert still.condition is None
    assert (over.condition, over.reason) == ("Failed", "BackoffLimitExceeded")
    assert over.has_ended


def test_a_job_of_somebody_else_is_not_ours() -> None:
    assert attempts("tiny", OURS, [a_job(uid="another")], [], NOON) == ()


def test_a_pod_that_only_carries_our_labels_is_not_ours() -> None:
    stranger = a_pod()
    stranger["metadata"]["ownerReferences"] = owner("ReplicaSet", "web", "x")
    assert attempts("tiny", OURS, [], [stranger], NOON) == ()


def an_orphan(uid: str | None = OURS, **meta: str) -> dict[str, Any]:
    """A pod whose Job was deleted with `--cascade=orphan`."""
    item = a_pod()
    del item["metadata"]["ownerReferences"]
    item["metadata"] |= meta
    if uid:
        item["metadata"]["annotations"]["rlhf.dev/job-uid"] = uid
    return item


def test_pods_that_their_job_has_left_to_themselves_still_count_and_are_to_go() -> None:
    (attempt,) = attempts("tiny", OURS, [], [an_orphan()], NOON)
    assert (attempt.is_live, attempt.is_orphaned) == (True, True)
    going = an_orphan(deletionTimestamp="2026-01-31T12:00:00Z")
    (attempt,) = attempts("tiny", OURS, [], [going], NOON)
    assert (attempt.is_live, attempt.is_orphaned) == (True, False)
    (attempt,) = attempts("tiny", OURS, [], [a_pod()], NOON)  # the garbage collector takes it
    assert not attempt.is_orphaned


@pytest.mark.parametrize(
    ("mark", "has_queue"),
    [({"rlhf.dev/gang": "native"}, False), ({"rlhf.dev/gang": "kueue"}, True), ({}, False)],
    ids=["native", "kueue", "prepare"],
)
def test_a_job_says_whether_a_queue_may_suspend_it(mark: dict[str, str], has_queue: bool) -> None:
    job = a_job()
    job["metadata"]["annotations"] |= mark
    job["spec"]["suspend"] = True
    (attempt,) = attempts("tiny", OURS, [job], [], NOON)
    assert (attempt.is_suspended, attempt.has_queue) == (True, has_queue)


def test_a_pod_whose_job_has_made_another_in_its_place_is_to_go() -> None:
    """Two of one rank train: somebody has taken the Job controller's labels from the first."""
    (attempt,) = attempts("tiny", OURS, [a_job(size=2)], [a_pod(1), an_orphan()], NOON)
    assert not attempt.is_orphaned  # its owner alone was taken, which the Job controller puts back
    (attempt,) = attempts("tiny", OURS, [a_job(size=2)], [a_pod(0), a_pod(1), an_orphan()], NOON)
    assert (attempt.is_live, attempt.is_orphaned) == (True, True)


def test_orphans_of_others_are_left_alone_and_those_of_our_name_are_waited_for() -> None:
    assert attempts("tiny", OURS, [], [an_orphan(None)], NOON) == ()
    (attempt,) = attempts("tiny", OURS, [], [an_orphan("uid-of-an-earlier-one")], NOON)
    assert (attempt.is_live, attempt.is_orphaned) == (True, False)


@pytest.mark.parametrize("number", ["", "one", "-1", "²", "2"])
def test_labels_that_make_no_sense_are_left_out(number: str) -> None:
    job, item = a_job(), a_pod()
    for child in (job, item):
        child["metadata"]["labels"] = labels(attempt=number)
    assert attempts("tiny", OURS, [job], [item], NOON) == ()


def test_pods_without_their_job_still_count() -> None:
    (attempt,) = attempts("tiny", OURS, [], [a_pod()], NOON)
    assert attempt.is_live
    assert attempt.is_terminating
    assert attempt.hash == "sha256:h"


def test_pods_whose_job_went_before_them_end_as_pods_do() -> None:
    failed = a_pod(phase="Failed", containerStatuses=[terminated(143)])
    (ended,) = attempts("tiny", OURS, [], [failed], NOON)
    (still,) = attempts("tiny", OURS, [], [failed, a_pod(1)], NOON)
    assert (ended.has_ended, still.has_ended) == (True, False)


def test_how_pods_of_an_earlier_job_of_the_name_ended_says_nothing_of_this_one() -> None:
    """It was deleted and made again, and the garbage collector has not come by yet."""
    done = a_pod(phase="Succeeded", containerStatuses=[terminated(0, "Completed", DONE)])
    ours, theirs = copy.deepcopy(done), done
    ours["metadata"]["annotations"]["rlhf.dev/job-uid"] = OURS
    theirs["metadata"]["annotations"]["rlhf.dev/job-uid"] = "uid-of-an-earlier-one"
    assert attempts("tiny", OURS, [], [theirs], NOON) == ()
    assert len(attempts("tiny", OURS, [], [ours], NOON)) == 1
    (attempt,) = attempts("tiny", OURS, [a_job(uid=OURS)], [theirs], NOON)
    assert not attempt.has_ended


def test_pods_of_an_earlier_job_of_the_name_may_still_write() -> None:
    alive = a_pod()
    alive["metadata"]["annotations"]["rlhf.dev/job-uid"] = "uid-of-an-earlier-one"
    (attempt,) = attempts("tiny", OURS, [], [alive], NOON)
    assert attempt.is_live


def test_an_orphan_of_an_earlier_job_of_the_name_is_not_ours() -> None:
    orphan = a_job()
    orphan["metadata"]["ownerReferences"] = []
    orphan["metadata"]["annotations"]["rlhf.dev/job-uid"] = "uid-of-an-earlier-one"
    assert attempts("tiny", OURS, [orphan], [], NOON) == ()


def test_a_job_whose_owner_was_taken_away_is_still_ours() -> None:
    disowned = a_job()
    disowned["metadata"]["ownerReferences"] = []
    assert len(attempts("tiny", OURS, [disowned], [], NOON)) == 1
    disowned["metadata"]["annotations"] = {}  # any Job of that name
    assert attempts("tiny", OURS, [disowned], [], NOON) == ()


def test_a_pod_that_was_deleted_before_it_was_seen_to_end_is_a_disruption() -> None:
    alive = a_pod(1, phase="Succeeded", containerStatuses=[terminated(0, "Completed")])
    (attempt,) = attempts("tiny", OURS, [a_job(FAILED, size=2)], [alive], NOON)
    outcome = outcome_of(attempt)
    assert (outcome.kind, outcome.reason) == ("Disruption", "PodDeleted")


def test_a_pod_that_failed_is_the_cause_even_where_others_are_missing() -> None:
    broken = a_pod(1, phase="Failed", containerStatuses=[terminated(75)])
    (attempt,) = attempts("tiny", OURS, [a_job(FAILED, size=2)], [broken], NOON)
    assert outcome_of(attempt).kind == "Fault"


def told_to_end(index: int, **status: Any) -> dict[str, Any]:
    """A pod that somebody deleted while it ran, and that saved."""
    item = a_pod(index, phase="Failed", containerStatuses=[terminated(143)], **status)
    item["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    return item


def evicted(index: int) -> dict[str, Any]:
    said = condition("DisruptionTarget", "True", "EvictionByEvictionAPI", "Eviction API: evicting")
    return told_to_end(index, conditions=[said])


@pytest.mark.parametrize("peers", [[], [told_to_end(0)]])
def test_who_took_a_pod_away_is_told_although_it_is_gone(peers: list[dict[str, Any]]) -> None:
    gone = [told_to_end(2), evicted(1)]
    (attempt,) = attempts("tiny", OURS, [a_job(FAILED, size=3)], peers, NOON, (), gone)
    outcome = outcome_of(attempt)
    assert (outcome.kind, outcome.reason) == ("Disruption", "EvictionByEvictionAPI")
    assert (outcome.exit_code, outcome.message) == (143, "Eviction API: evicting")
    assert outcome.pod is not None
    assert (outcome.pod.name, outcome.pod.node) == ("tiny-sft-1-1-abcde", "node-a")


@pytest.mark.parametrize(
    ("pods", "gone"),
    [
        ([told_to_end(1)], []),
        ([told_to_end(1)], [a_pod(0)]),
        ([told_to_end(0), told_to_end(1)], []),
    ],
)
def test_what_peers_of_a_deleted_pod_say_of_their_end_costs_no_budget(
    pods: list[dict[str, Any]], gone: list[dict[str, Any]]
) -> None:
    (attempt,) = attempts("tiny", OURS, [a_job(FAILED, size=2)], pods, NOON, (), gone)
    assert attempt.has_ended
    outcome = outcome_of(attempt)
    assert (outcome.kind, outcome.reason) == ("Disruption", "PodDeleted")


def test_a_peer_that_failed_by_itself_is_the_cause_whatever_was_deleted_later() -> None:
    broken = told_to_end(1)
    broken["status"]["containerStatuses"] = [terminated(75)]
    (attempt,) = attempts("tiny", OURS, [a_job(FAILED, size=2)], [broken], NOON)
    assert outcome_of(attempt).kind == "Fault"


COMPLETE = condition("Complete", "True", "CompletionsReached")


def completed(*conditions: dict[str, str], indexes: str, size: int) -> dict[str, Any]:
    """A Job of which the pods of these indexes have succeeded."""
    job = a_job(*conditions, size=size)
    job["status"]["completedIndexes"] = indexes
    return job


def succeeded(index: int, message: str = "") -> dict[str, Any]:
    ended = terminated(0, "Completed", message)
    return a_pod(index, phase="Succeeded", containerStatuses=[ended])


def test_a_result_counts_although_its_pod_was_cleared_away_before_its_peer_had_ended() -> None:
    """Drains and autoscalers delete pods that have succeeded, too."""
    running, gone = completed(indexes="0", size=2), [succeeded(0, DONE)]
    (attempt,) = attempts("tiny", OURS, [running], [a_pod(1)], NOON, (), gone)
    assert (attempt.is_running, attempt.has_ended) == (True, False)
    over = completed(COMPLETE, indexes="0,1", size=2)
    (attempt,) = attempts("tiny", OURS, [over], [succeeded(1)], NOON, (), gone)
    assert outcome_of(attempt).kind == "Done"


def test_a_pod_that_succeeded_and_is_gone_is_not_about_to_be_made() -> None:
    running = completed(indexes="0-1", size=3)
    (attempt,) = attempts("tiny", OURS, [running], [a_pod(2)], NOON)
    assert (attempt.is_running, waiting(attempt)) == (True, None)


@pytest.mark.parametrize("left", [[], [succeeded(1)]])
def test_a_result_that_nobody_can_read_any_more_is_no_fault(left: list[dict[str, Any]]) -> None:
    over = completed(COMPLETE, indexes="0,1", size=2)
    (attempt,) = attempts("tiny", OURS, [over], left, NOON)
    assert attempt.has_ended
    outcome = outcome_of(attempt)
    assert (outcome.kind, outcome.reason) == ("Disruption", "PodsGone")


@pytest.mark.parametrize("indexes", ["", "all", "7", "-", "9" * 5000, "x-y,,0"])
def test_indexes_that_no_job_controller_writes_are_left_out(indexes: str) -> None:
    (attempt,) = attempts("tiny", OURS, [completed(indexes=indexes, size=1)], [a_pod(0)], NOON)
    assert [found.completion_index for found in attempt.pods] == [0]


def test_of_a_gang_that_was_told_to_end_the_pod_that_had_succeeded_is_not_the_cause() -> None:
    pods = [succeeded(0, DONE), told_to_end(1)]
    (attempt,) = attempts("tiny", OURS, [a_job(FAILED, size=2)], pods, NOON)
    outcome = outcome_of(attempt)
    assert (outcome.kind, outcome.reason) == ("Disruption", "PodDeleted")
    assert outcome.pod is not None
    assert outcome.pod.completion_index == 1


def test_a_stage_is_done_although_containers_that_a_webhook_added_failed() -> None:
    """The proxy of one was killed for its memory; that failed the Job, which ended the other's."""
    done, peer = (
        a_pod(
            index,
            phase="Failed",
            containerStatuses=[
                {**terminated(137), "name": "proxy"},
                terminated(0, "Completed", message),
            ],
        )
        for index, message in enumerate((DONE, ""))
    )
    peer["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    (attempt,) = attempts("tiny", OURS, [a_job(FAILED, size=2)], [done, peer], NOON)
    assert attempt.has_ended
    assert outcome_of(attempt).kind == "Done"
    (attempt,) = attempts("tiny", OURS, [a_job(FAILED, size=2)], [done], NOON, (), [peer])
    assert outcome_of(attempt).kind == "Done"


def test_pods_that_all_tell_of_no_result_are_a_fault() -> None:
    over = completed(COMPLETE, indexes="0,1", size=2)
    (attempt,) = attempts("tiny", OURS, [over], [succeeded(0), succeeded(1)], NOON)
    assert (outcome_of(attempt).kind, outcome_of(attempt).reason) == ("Fault", "NoResult")


@pytest.mark.parametrize(("last_pod_goes", "lost"), [("12:02:30", False), ("12:02:31", True)])
def test_a_pod_that_outlives_its_grace_period_was_on_a_node_that_was_lost(
    last_pod_goes: str, lost: bool
) -> None:
    told = condition("FailureTarget", "True") | {"lastTransitionTime": "2026-01-31T12:00:00Z"}
    gone = FAILED | {"lastTransitionTime": f"2026-01-31T{last_pod_goes}Z"}
    (attempt,) = attempts("tiny", OURS, [a_job(told, gone, size=2)], [], NOON)
    assert attempt.lost_a_node is lost
    (attempt,) = attempts("tiny", OURS, [a_job(told, size=2)], [], NOON)
    assert not attempt.lost_a_node


def test_a_pod_that_still_uploads_is_on_no_lost_node() -> None:
    told = condition("FailureTarget", "True") | {"lastTransitionTime": "2026-01-31T12:00:00Z"}
    gone = FAILED | {"lastTransitionTime": "2026-01-31T12:10:00Z"}
    job = a_job(told, gone)
    job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 600
    (attempt,) = attempts("tiny", OURS, [job], [], NOON)
    assert not attempt.lost_a_node


def test_an_attempt_that_took_too_long_is_no_disruption() -> None:
    late = condition("Failed", "True", "DeadlineExceeded")
    (attempt,) = attempts("tiny", OURS, [a_job(late)], [], NOON)
    assert (outcome_of(attempt).kind, outcome_of(attempt).reason) == ("Fault", "DeadlineExceeded")


def test_an_index_of_thousands_of_digits_is_none() -> None:
    item = a_pod()
    item["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] = "9" * 5000
    assert pod(item, NOON).completion_index == 0


def test_a_pod_with_nothing_in_it_is_read() -> None:
    bare = {"metadata": {"name": "x"}}
    assert pod(bare, NOON) == Pod("x", 0, phase="Unknown")


def a_config(name: str = "tiny-sft-1", uid: str = OURS, **meta: str) -> dict[str, Any]:
    metadata = {
        "name": name,
        "labels": labels(),
        "ownerReferences": owner("RLHFJob", "tiny", uid),
        **meta,
    }
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


@pytest.mark.parametrize(
    ("others", "jobs", "expected"),
    [
        ([a_config()], [], (("sft", 1),)),
        ([a_config(), {**a_config(), "kind": "Service"}], [], (("sft", 1),)),
        ([a_config()], [a_job()], ()),  # its Job is there: it is seen as an attempt
        ([a_config(uid="of-an-earlier-rlhfjob")], [], ()),
        ([a_config(name="theirs")], [], ()),
        ([a_config(deletionTimestamp="2026-01-31T12:00:00Z")], [], ()),
    ],
)
def test_what_is_left_of_an_attempt_without_job_and_pods(
    others: list[dict[str, Any]], jobs: list[dict[str, Any]], expected: tuple[tuple[str, int], ...]
) -> None:
    shown = attempts("tiny", OURS, jobs, [], NOON)
    assert left_over("tiny", OURS, others, shown) == expected


def test_a_service_alone_is_left_of_an_attempt_whose_name_begins_with_a_digit() -> None:
    service = {**a_config(name="x7b-sft-1-pods"), "kind": "Service"}
    assert left_over("7b", OURS, [service], ()) == (("sft", 1),)


def test_an_attempt_is_as_old_as_its_job() -> None:
    made = a_job()
    made["metadata"]["creationTimestamp"] = "2026-01-31T11:59:58Z"
    (found,) = attempts("tiny", OURS, [made], [], NOON)
    assert found.made_at == NOON - timedelta(seconds=2)
