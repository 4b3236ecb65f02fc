"""Why pods wait: one stable reason, in the words of whoever keeps them waiting."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from builders import NOON, World, a_job
from rlhf_operator.expiry import next_pass
from rlhf_operator.observed import Attempt, Pod
from rlhf_operator.waiting import BY_HAND, WAITS_FOR_GANG, Wait, misses_pods, waiting

SHORT = (
    "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available: "
    "2 No preemption victims found for incoming pod."
)

OF_1_36 = (
    "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient nvidia.com/gpu. "
    "no new claims to deallocate, preemption: 0/3 nodes are available: 1 Preemption is not helpful "
    "for scheduling, 2 No preemption victims found for incoming pod."
)
"""As kube-scheduler 1.36 says it."""


def gang(*pods: Pod, size: int = 4) -> Attempt:
    return Attempt("sft", 1, "", "", size=size, pods=pods)


def pod(index: int, reason: str | None = None, message: str = "", node: str | None = None) -> Pod:
    return Pod(f"tiny-sft-1-{index}", index, "Pending", None, reason, message, node=node)


WAITS = {
    "native gang, two find a place": (
        gang(
            *(pod(i, "Unschedulable", WAITS_FOR_GANG + " to be scheduled") for i in (0, 1)),
            *(pod(i, "Unschedulable", SHORT) for i in (2, 3)),
        ),
        Wait("Unschedulable", "2 of 4 pods fit: insufficient nvidia.com/gpu."),
    ),
    "volcano, three find a place": (
        gang(
            *(pod(i, "Schedulable", "can possibly be assigned to a") for i in (0, 1, 2)),
            pod(3, "Unschedulable", "0/1 nodes are unavailable: 1 Insufficient cpu."),
        ),
        Wait("Unschedulable", "3 of 4 pods fit: insufficient cpu."),
    ),
    "no gang scheduler, one is placed": (
        gang(pod(0, node="node-a"), *(pod(i, "Unschedulable", SHORT) for i in (1, 2, 3))),
        Wait("Unschedulable", "1 of 4 pods fit: insufficient nvidia.com/gpu."),
    ),
    "native gang, one is to go": (
        gang(
            *(pod(i, "Unschedulable", WAITS_FOR_GANG + " to be scheduled") for i in (0, 1, 2)),
            pod(3, "Terminating", "tiny-sft-1-3 was deleted, and has yet to go"),
        ),
        Wait("Unschedulable", "3 of 4 pods fit: tiny-sft-1-3 was deleted, and has yet to go."),
    ),
    "two that are not there do not fit": (
        gang(*(pod(i, "Unschedulable", SHORT) for i in (0, 1))),
        Wait("Unschedulable", "0 of 4 pods fit: insufficient nvidia.com/gpu."),
    ),
    "where room for it could not be made either": (
        gang(pod(0, "Unschedulable", OF_1_36), size=1),
        Wait(
            "Unschedulable",
            "0 of 1 pods fit: node(s) had untolerated taint(s), insufficient nvidia.com/gpu.",
        ),
    ),
    "a claim whose volume is not there yet, as 1.36 says it": (
        gang(
            pod(
                0,
                "Unschedulable",
                "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims. "
                "not found",
            ),
            size=1,
        ),
        Wait(
            "Unschedulable",
            "0 of 1 pods fit: pod has unbound immediate PersistentVolumeClaims.",
        ),
    ),
    "pods that a quota refuses": (
        gang(pod(0, "Unschedulable", SHORT))._replace(refused="exceeded quota: few"),
        Wait("PodsRefused", "1 of 4 pods could be made: exceeded quota: few."),
    ),
    "pods whose claims are not made": (
        gang(pod(0), size=1)._replace(unclaimed='resource claim template "gpus" not found'),
        Wait(
            "ClaimsMissing",
            'The ResourceClaims of its pods cannot be made: resource claim template "gpus" not '
            "found.",
        ),
    ),
    "several causes": (
        gang(
            pod(
                0,
                "Unschedulable",
                "0/5 nodes are available: 2 Insufficient memory, 3 node(s) had untolerated "
                "taint {gpu: true}. preemption: not helpful.",
            ),
            size=1,
        ),
        Wait(
            "Unschedulable",
            "0 of 1 pods fit: insufficient memory, node(s) had untolerated taint {gpu: true}.",
        ),
    ),
    "another scheduler's words": (
        gang(pod(0, "Unschedulable", "queue research is over its quota."), size=1),
        Wait("Unschedulable", "0 of 1 pods fit: queue research is over its quota."),
    ),
    "a scheduling gate": (
        gang(pod(0, "SchedulingGated", "…"), size=1),
        Wait(
            "SchedulingGated",
            "Its pods have a scheduling gate that another controller has to lift.",
        ),
    ),
    "Kueue with its words": (
        gang()._replace(is_suspended=True, queue_message="couldn't assign flavors to pod set main"),
        Wait(
            "QueueAdmission",
            "The Job is suspended by its queue: couldn't assign flavors to pod set main.",
        ),
    ),
    "a Job that no queue has suspended": (
        gang()._replace(is_suspended=True, has_queue=False),
        Wait("JobSuspended", BY_HAND),
    ),
    "Kueue, of a Job that was not made for it": (
        gang()._replace(is_suspended=True, has_queue=False, queue_message="no quota"),
        Wait("QueueAdmission", "The Job is suspended by its queue: no quota."),
    ),
    "a missing Secret": (
        gang(
            pod(0, "CreateContainerConfigError", 'secret "hf" not found', "node-a"),
            pod(1, None, "", "node-a"),
            size=2,
        ),
        Wait("CreateContainerConfigError", 'tiny-sft-1-0 on node-a: secret "hf" not found'),
    ),
    "an image that is not there": (
        gang(
            pod(0, "ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: no', "node-a"),
            size=1,
        ),
        Wait("ImagePullFailed", "tiny-sft-1-0 on node-a: no"),
    ),
}


@pytest.mark.parametrize("case", list(WAITS))
def test_what_is_waited_for_is_told(case: str) -> None:
    attempt, expected = WAITS[case]
    assert waiting(attempt) == expected


def test_pods_that_are_not_made_yet_and_pods_that_start_are_told_apart() -> None:
    found = [
        waiting(gang(pod(0), size=2)),
        waiting(gang(pod(0), pod(1), size=2)),
        waiting(gang(pod(0, node="a"), pod(1, node="b"), size=2)),
    ]
    assert [wait.reason for wait in found if wait] == ["PodsPending", "PodsPending", "PodsStarting"]


@pytest.mark.parametrize(
    ("changes", "misses"),
    [
        ({}, True),
        ({"made_at": NOON - timedelta(seconds=4)}, False),
        ({"made_at": None}, False),
        ({"size": 1}, False),
        ({"is_suspended": True}, False),
        ({"is_terminating": True}, False),
        ({"condition": "Failed"}, False),
    ],
)
def test_pods_are_missed_once_they_should_be_there(changes: dict[str, Any], misses: bool) -> None:
    attempt = gang(pod(0))._replace(made_at=NOON - timedelta(minutes=1))
    assert misses_pods(attempt._replace(**changes), NOON) is misses


@pytest.mark.parametrize("phase", ["Running", "Succeeded", "Failed", "Unknown"])
def test_a_gang_whose_pods_have_all_started_waits_for_nothing(phase: str) -> None:
    attempt = gang(pod(0)._replace(phase=phase), pod(1)._replace(phase="Running"), size=2)  # type: ignore[arg-type]
    assert waiting(attempt) is None


def test_no_words_of_the_scheduler_change_while_only_its_counts_of_nodes_do() -> None:
    texts = [f"0/{n} nodes are available: {n} Insufficient nvidia.com/gpu." for n in (2, 3, 40)]
    assert len({waiting(gang(pod(0, "Unschedulable", text), size=1)) for text in texts}) == 1


def condition(world: World, kind: str) -> tuple[str, str, str]:
    found = next(item for item in world.status.conditions if item.type == kind)
    return found.status, found.reason, found.message


def test_scheduled_says_who_fits_since_when_and_is_not_written_again() -> None:
    world = World(a_job().build())
    world.settle()
    world.succeeds("prepare")
    world.after(minutes=1).becomes("sft", "Pending", reason="Unschedulable", message=SHORT).settle()
    told = "sft: 0 of 1 pods fit: insufficient nvidia.com/gpu."
    assert condition(world, "Scheduled") == ("False", "Unschedulable", told)
    assert world.stage("sft").phase == "Pending"
    before = world.job
    world.after(hours=3).settle()
    assert world.job == before
    world.becomes("sft", "Pending", node="node-a", reason=None, message="").settle()
    assert condition(world, "Scheduled")[:2] == ("True", "Scheduled")


def just_made(**attempt: Any) -> World:
    """`prepare` has got its children this very moment."""
    world = World(a_job().build())
    world.reconcile()
    world.reconcile()
    made = {"made_at": world.now} | attempt
    world.attempts["prepare", 1] = world.current("prepare")._replace(**made)
    return world


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"pods": ()}, "PodsPending"),
        ({"pods": (pod(0),)}, "PodsPending"),
        # Kueue suspends Jobs that name no queue, too, and says why a moment later.
        ({"pods": (), "is_suspended": True, "has_queue": False}, "JobSuspended"),
    ],
    ids=["no pods", "a pod", "suspended"],
)
def test_of_an_attempt_that_nobody_has_looked_at_yet_nothing_is_written(
    made: dict[str, Any], reason: str
) -> None:
    world = just_made(**made)
    before = world.status
    for _ in range(3):
        assert world.after(seconds=1).reconcile() == []
        assert world.status == before
    assert next_pass(world.job, world.observed(), world.status) == world.now + timedelta(seconds=12)
    world.after(seconds=12).settle()
    assert world.stage("prepare").reason == reason
    assert next_pass(world.job, world.observed(), world.status) is None


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"pods": (pod(0, "Unschedulable", SHORT),)}, "Unschedulable"),
        ({"pods": (pod(0, node="node-a"),)}, "PodsStarting"),
        ({"pods": (pod(0)._replace(phase="Running"),)}, "Preparing"),
        ({"is_suspended": True}, "QueueAdmission"),
    ],
)
def test_whatever_the_cluster_says_is_told_at_once(told: dict[str, Any], reason: str) -> None:
    world = just_made(**told)
    world.reconcile()
    assert world.stage("prepare").reason == reason
    assert world.stage("prepare").start_time is not None


def test_what_was_told_is_not_taken_back() -> None:
    world = just_made(pods=(pod(0, node="node-a"),))
    world.reconcile()
    world.becomes("prepare", "Pending", node=None).reconcile()
    assert world.stage("prepare").reason == "PodsPending"


@pytest.mark.parametrize("seconds", [-60, 60])
def test_with_clocks_that_differ_everything_is_told_at_once(seconds: int) -> None:
    world = just_made()
    world.attempts["prepare", 1] = world.current("prepare")._replace(
        made_at=world.now + timedelta(seconds=seconds)
    )
    world.reconcile()
    assert world.stage("prepare").reason == "PodsPending"


def test_a_child_that_is_missing_is_made_also_of_an_attempt_that_is_just_made() -> None:
    world = just_made(is_whole=False)
    assert [action.attempt for action in world.reconcile()] == [1]


def test_a_job_that_is_suspended_at_once_ends_the_attempt_that_is_just_made() -> None:
    world = just_made()
    world.edit(a_job().with_spec("suspend", True)).settle()
    assert world.current("prepare").is_terminating
    assert world.stage("prepare").phase == "Suspended"


def test_a_queue_that_suspends_a_job_makes_it_wait_and_not_fail() -> None:
    world = World(a_job().build()).up_to("sft")
    attempt = world.current("sft")
    world.attempts["sft", 1] = attempt._replace(pods=(), is_suspended=True)
    assert world.after(days=2).settle() == []
    assert condition(world, "Scheduled")[:2] == ("False", "QueueAdmission")
    assert condition(world, "Stalled")[0] == "False"
    world.attempts["sft", 1] = attempt
    world.settle()
    assert (world.stage("sft").phase, world.stage("sft").attempt) == ("Running", 1)


def test_nothing_is_scheduled_once_all_is_done() -> None:
    assert condition(World(a_job().build()).finish(), "Scheduled")[0] == "Unknown"


def test_a_person_who_is_needed_is_told_the_command() -> None:
    gated = a_job().with_spec("stages.reward.gate", {"approval": True})
    world = World(gated.build()).up_to("reward")
    assert condition(world, "ApprovalNeeded")[0] == "False"
    world.succeeds("reward", "dpo")
    status, reason, message = condition(world, "ApprovalNeeded")
    digest = (world.stage("reward").hash or "")[7:19]
    assert (status, reason) == ("True", "AwaitingApproval")
    command = f"kubectl annotate rlhfjob tiny rlhf.dev/approve-reward={digest} --overwrite"
    assert command in message
    world.edit(
        a_job()
        .with_spec("stages.reward.gate", {"approval": True})
        .with_annotation("rlhf.dev/approve-reward", digest)
    ).settle()
    assert condition(world, "ApprovalNeeded")[0] == "False"
