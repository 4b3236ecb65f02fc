"""Why the pods of an attempt do not all run yet: one stable reason, in the cluster's own words.

A message holds no number that moves by itself, so that a status which waits is not written again.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from rlhf_operator.observed import Attempt, Pod

UNPLACED: Final = frozenset(
    {
        "QueueAdmission",
        "JobSuspended",
        "PodsPending",
        "PodsRefused",
        "ClaimsMissing",
        "Unschedulable",
        "SchedulingGated",
        "WaitingForDevices",
    }
)
"""Reasons for which pods are not on nodes; all others come after that."""

WAITS_FOR_GANG: Final = "waiting for minCount pods from a gang"
"""What kube-scheduler (plugins/gangscheduling) says of a pod that fits, and of which others do not.
"""

PULL_REASONS: Final = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
PULL_PREFIX: Final = re.compile(r'^Back-off pulling image "[^"]*"(: (ErrImagePull: )?)?')
UNAVAILABLE: Final = re.compile(r"^\d+/\d+ nodes are (?:un)?available: (.*)$", re.DOTALL)
VICTIMS: Final = re.compile(
    r"[.,] (?:no new claims to deallocate|still not schedulable|preemption: |not found$)"
)
"""Where kube-scheduler goes on with what its plug-ins tried in vain to make room. `not found` is
that of DynamicResources, which has not looked at a pod that waits for a volume."""

BY_HAND: Final = (
    "Somebody, or another controller, has set spec.suspend of its Job, which no queue is to do. It "
    "goes on from its newest checkpoint once that is false again; `kubectl get job -o yaml "
    "--show-managed-fields` tells who it was."
)
HELD_BACK: Final = {
    "SchedulingGated": "Its pods have a scheduling gate that another controller has to lift.",
    "WaitingForDevices": "It waits until other stages give back the machine's devices.",
}
"""Reasons of pods that no scheduler looks at yet, and what is said of an attempt that has one."""

MOMENT: Final = timedelta(seconds=15)
"""For how long nothing is said of an attempt that the cluster has not said anything of. Pods are
made and looked at within milliseconds, or ten seconds where hundreds of jobs come at once, as
kube-controller-manager sends 20 requests a second; of these each such word would be a write."""


class Wait(NamedTuple):
    """What is waited for."""

    reason: str
    message: str


def waiting(attempt: Attempt) -> Wait | None:
    """What keeps an attempt's pods from running; None where they all run or have run."""
    if attempt.is_suspended and not (attempt.has_queue or attempt.queue_message):
        return Wait("JobSuspended", BY_HAND)
    if attempt.is_suspended:
        said = attempt.queue_message or "its queue has not admitted it"
        return Wait("QueueAdmission", f"The Job is suspended by its queue: {said}.")
    waits = [pod for pod in attempt.pods if not pod.has_started]
    unplaced = [pod for pod in waits if not pod.node]
    if attempt.refused:
        made = f"{len(attempt.pods)} of {attempt.size} pods could be made"
        return Wait("PodsRefused", f"{made}: {attempt.refused}.")
    if len(attempt.pods) < attempt.size and not any(pod.reason for pod in unplaced):
        hint = "a quota or a webhook may refuse them; `kubectl describe job` tells"
        return Wait("PodsPending", f"Pods are being made; where that lasts, {hint}.")
    if unplaced:
        return _unplaced(attempt, unplaced)
    return _starting(waits) if waits else None


def misses_pods(attempt: Attempt, now: datetime) -> bool:
    """Whether pods that should be there long since are not."""
    is_known = attempt.made_at is not None
    is_late = is_known and not is_fresh(attempt, now)
    return attempt.goes_on and is_late and len(attempt.pods) < attempt.size


def is_unseen(attempt: Attempt, now: datetime) -> bool:
    """Whether a scheduler that should long since have looked at a pod has not."""
    is_late = attempt.made_at is not None and not is_fresh(attempt, now)
    waits = any(not (pod.node or pod.reason or pod.has_started) for pod in attempt.pods)
    return attempt.goes_on and is_late and waits


def is_just_made(attempt: Attempt, now: datetime) -> bool:
    """Whether an attempt is so fresh that nothing is to be said of it yet."""
    return is_fresh(attempt, now) and attempt.is_untold


def is_fresh(attempt: Attempt, now: datetime) -> bool:
    """By the distance of two clocks: where these differ by more than that, nothing is fresh."""
    return attempt.made_at is not None and abs(now - attempt.made_at) < MOMENT


def _unplaced(attempt: Attempt, pods: list[Pod]) -> Wait:
    for reason, said in HELD_BACK.items():
        if any(pod.reason == reason for pod in pods):
            return Wait(reason, said)
    told = [pod for pod in pods if pod.reason]
    if attempt.unclaimed:
        said = f"The ResourceClaims of its pods cannot be made: {attempt.unclaimed}."
        return Wait("ClaimsMissing", said)
    if not told:
        return Wait("PodsPending", "The scheduler has not looked at the pods yet.")
    unfit = [pod for pod in told if not _fits(pod)]
    fit = len(attempt.pods) - len(pods) + sum(_fits(pod) for pod in told)
    words = _words(unfit[0].message) if unfit else ""
    why = words or "the gang waits for the rest of its pods"
    return Wait("Unschedulable", f"{fit} of {attempt.size} pods fit: {why}.")


def _fits(pod: Pod) -> bool:
    """Whether the scheduler has found a place for it, and waits for its siblings (Volcano: reason
    Schedulable; kube-scheduler: by its words)."""
    return pod.reason == "Schedulable" or WAITS_FOR_GANG in pod.message


def _words(message: str) -> str:
    """kube-scheduler's causes without its counts of nodes; the words of others as they are.

    `0/2 nodes are available: 2 Insufficient nvidia.com/gpu. no new claims to deallocate,
    preemption: …` gives `insufficient nvidia.com/gpu`.
    """
    found = UNAVAILABLE.match(message)
    if not found:
        return message.strip().rstrip(".")
    causes = VICTIMS.split(found.group(1))[0].strip().rstrip(".")
    plain = [re.sub(r"^\d+ ", "", cause) for cause in re.split(r", (?=\d+ )", causes)]
    return ", ".join(cause[:1].lower() + cause[1:] for cause in dict.fromkeys(plain))


def _starting(pods: list[Pod]) -> Wait:
    """Pods that are on nodes: what their kubelets say."""
    told = next((pod for pod in pods if pod.reason), None)
    if told is None:
        said = "images are pulled, volumes mounted; `kubectl describe pod` tells what lasts"
        return Wait("PodsStarting", f"Pods are on nodes and start: {said}.")
    where = f"{told.name} on {told.node}"
    if told.reason in PULL_REASONS:
        said = PULL_PREFIX.sub("", told.message) or "its image cannot be pulled"
        return Wait("ImagePullFailed", f"{where}: {said}")
    return Wait(told.reason or "PodsStarting", f"{where}: {told.message or told.reason}")
