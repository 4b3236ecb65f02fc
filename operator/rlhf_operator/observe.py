"""From Kubernetes objects to what the plan reads. Pure: a Job and pods in, an Attempt out.

What the fields mean, and who writes them, is in the Kubernetes API reference; the cases that are
read here were seen on a kubelet and a Job controller of 1.36.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from rlhf_api.run import ExitCode

from rlhf_operator import kueue
from rlhf_operator.names import (
    ANNOTATION_GANG,
    ANNOTATION_HASH,
    ANNOTATION_JOB_UID,
    ANNOTATION_SETTINGS,
    COMPLETION_INDEX,
    CONTAINER_NAME,
    LABEL_ATTEMPT,
    LABEL_JOB,
    LABEL_STAGE,
    child_name,
    service_name,
)
from rlhf_operator.observed import Attempt, Pod, PodPhase, parse_result
from rlhf_operator.times import read

Object = dict[str, Any]

REJECTED: Final = re.compile(r"UnexpectedAdmissionError|NodeAffinity|NodeShutdown|OutOf.+")
"""What a kubelet says of a pod that it does not take, or not again after a restart of its own: a
device plug-in is away, the node has changed. It sets no DisruptionTarget then.
"""
QUEUEING: Final = "kueue"
"""The one gang scheduler that suspends Jobs."""
INDEX_DIGITS: Final = 10
"""More than any index has; a number of thousands of digits is refused by int()."""
TOLD_TO_END: Final = (137, ExitCode.TERMINATED)
DELETED: Final = "The pod was deleted before it had ended."
NODE_SILENCE: Final = timedelta(seconds=30)
"""How long after the end of its grace period a pod may still be shown before its node is lost."""
PHASES: Final[Mapping[str, PodPhase]] = {
    "Pending": "Pending",
    "Running": "Running",
    "Succeeded": "Succeeded",
    "Failed": "Failed",
}


def attempts(
    job: str,
    uid: str,
    jobs: Iterable[Object],
    pods: Iterable[Object],
    now: datetime,
    workloads: Sequence[Object] = (),
    departed: Iterable[Object] = (),
) -> tuple[Attempt, ...]:
    """What is left of each attempt of the RLHFJob with this name and UID.

    `workloads`: Kueue's, which tell why a Job is suspended. `departed`: pods that went before their
    Job, as they were last seen.
    Objects that only carry our labels, and belong to somebody else, are left out. Pods whose Job
    went before them still count: they may still write, also where it has left them to themselves
    (`kubectl delete job --cascade=orphan`). Those of an earlier RLHFJob of this name count for no
    longer than that: how they ended says nothing of this one.
    """
    mine = {key: item for item in jobs if (key := _attempt_it_serves(item, job, uid))}
    gangs: dict[tuple[str, int], list[Object]] = {}
    for item in pods:
        if key := attempt_of_pod(item, job, uid, now):
            gangs.setdefault(key, []).append(item)
    went: dict[tuple[str, int], list[Object]] = {}
    for item in departed:
        went.setdefault(attempt_of(item) or ("", 0), []).append(item)
    keys = sorted({*mine, *gangs})
    left = {key for key, of in gangs.items() if any(_is_to_go(item, uid) for item in of)}
    orphans = {key for key in left if key not in mine or _is_replaced(gangs[key])}
    found = (_attempt(k, mine.get(k), gangs.get(k, []), went.get(k, []), now) for k in keys)
    return tuple(
        _with_words(item, mine, workloads)._replace(
            is_orphaned=(item.stage, item.number) in orphans
        )
        for item in found
    )


def _with_words(
    attempt: Attempt, jobs: Mapping[tuple[str, int], Object], workloads: Sequence[Object]
) -> Attempt:
    """An attempt that is suspended, with why, as its queue tells it."""
    if not attempt.is_suspended or not workloads:
        return attempt
    uid = jobs[attempt.stage, attempt.number]["metadata"]["uid"]
    return attempt._replace(queue_message=kueue.words(workloads, uid))


def left_over(
    job: str, uid: str, others: Iterable[Object], shown: Iterable[Attempt]
) -> tuple[tuple[str, int], ...]:
    """Attempts of which nothing is left but `others`: our objects that are neither Jobs nor pods.

    An operator may die, or be refused, between the deletions of one attempt's children.
    """
    found = {
        key
        for item in others
        if "deletionTimestamp" not in item["metadata"]
        and (key := _attempt_it_serves(item, job, uid))
    }
    return tuple(sorted(found - {(a.stage, a.number) for a in shown}))


def _attempt_it_serves(item: Object, job: str, uid: str) -> tuple[str, int] | None:
    """Stage and number of the attempt that a child belongs to; None where it is not ours."""
    key = attempt_of(item)
    if key is None or not is_ours(item, uid):
        return None
    child = child_name(job, *key)
    return key if name_of(item) in (child, service_name(child)) else None


def attempt_of_pod(item: Object, job: str, uid: str, now: datetime) -> tuple[str, int] | None:
    """Stage and number of the attempt that a pod counts for; None where it is a stranger's."""
    key = attempt_of(item)
    if key is None or (is_of_another(item, uid) and not pod(item, now).is_live):
        return None
    is_ours = _is_orphan(item) or _owner_name(item) == child_name(job, *key)
    return key if is_ours else None


def _is_orphan(item: Object) -> bool:
    """Whether it is a pod that we had made, and that its Job has left to itself."""
    marks = item["metadata"].get("annotations") or {}
    return controller(item) is None and ANNOTATION_JOB_UID in marks


def _is_replaced(pods: Iterable[Object]) -> bool:
    """Whether a Job has made another pod in the place of one that it knows no more. One that lost
    its owner alone gets it back from there."""
    places: dict[bool, set[int]] = {True: set(), False: set()}
    for item in pods:
        places[_is_orphan(item)].add(_index(item["metadata"]))
    return bool(places[True] & places[False])


def relabelled(item: Object, workload: Object) -> Object | None:
    """A pod of this Job with the labels of ours that it has lost; None where it has lost none."""
    has = item["metadata"].get("labels") or {}
    ours = workload["metadata"].get("labels") or {}
    had = {name: ours[name] for name in (LABEL_JOB, LABEL_STAGE, LABEL_ATTEMPT) if name in ours}
    if had.items() <= has.items():
        return None
    return item | {"metadata": item["metadata"] | {"labels": has | had}}


def hides_pods(attempt: Attempt, workload: Object | None, seen: int) -> bool:
    """Whether there are more pods of an attempt than were seen: its Job counts more that have not
    ended, or has ended itself."""
    if attempt.has_ended or attempt.condition is not None:
        return seen < attempt.size
    status = (workload or {}).get("status") or {}
    return (status.get("active") or 0) + (status.get("terminating") or 0) > seen


def _is_to_go(item: Object, uid: str) -> bool:
    """Whether it is such a pod of the RLHFJob with this UID, and nobody has deleted it yet."""
    is_being_deleted = "deletionTimestamp" in item["metadata"]
    return _is_orphan(item) and not is_being_deleted and not is_of_another(item, uid)


def attempt_of(item: Object) -> tuple[str, int] | None:
    """Stage and number by the labels; None where they are missing or make no sense."""
    labels = item["metadata"].get("labels") or {}
    stage, number = labels.get(LABEL_STAGE), labels.get(LABEL_ATTEMPT, "")
    return (stage, int(number)) if stage and number.isdecimal() else None


def name_of(item: Object) -> str:
    """Its name."""
    name: str = item["metadata"]["name"]
    return name


def controller(item: Object) -> Object | None:
    """The owner that controls it."""
    owners = item["metadata"].get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), None)


def controller_uid(item: Object) -> str | None:
    """UID of the owner that controls it."""
    owner = controller(item)
    return owner["uid"] if owner else None


def is_ours(item: Object, uid: str) -> bool:
    """Whether the RLHFJob with this UID made it. Somebody may have taken its owner away."""
    owner = controller_uid(item)
    marks = item["metadata"].get("annotations") or {}
    is_disowned = owner is None and ANNOTATION_SETTINGS in marks
    return owner == uid or (is_disowned and not is_of_another(item, uid))


def is_of_another(item: Object, uid: str | None) -> bool:
    """Whether it says that it was made for an RLHFJob with another UID."""
    marks = item["metadata"].get("annotations") or {}
    return marks.get(ANNOTATION_JOB_UID, uid) != uid


def _owner_name(item: Object) -> str | None:
    owner = controller(item)
    return owner["name"] if owner else None


def _attempt(
    key: tuple[str, int],
    job: Object | None,
    pods: list[Object],
    departed: list[Object],
    now: datetime,
) -> Attempt:
    shown = [*([job] if job else []), *pods]
    annotations = shown[0]["metadata"].get("annotations") or {}
    seen = tuple(sorted((pod(item, now) for item in pods), key=lambda p: p.completion_index))
    attempt = Attempt(
        stage=key[0],
        number=key[1],
        hash=annotations.get(ANNOTATION_HASH, ""),
        settings=annotations.get(ANNOTATION_SETTINGS, ""),
        size=(job or {}).get("spec", {}).get("completions") or len(pods),
        pods=seen,
        is_terminating=job is None or "deletionTimestamp" in job["metadata"],
    )
    if job is None:  # nobody else will say how it ended
        has_failed = not attempt.is_live and any(p.phase == "Failed" for p in seen)
        return attempt._replace(condition="Failed" if has_failed else None)
    condition, reason = job_end(job)
    attempt = attempt._replace(
        condition=condition,
        reason=reason,
        is_suspended=bool((job.get("spec") or {}).get("suspend")),
        has_queue=annotations.get(ANNOTATION_GANG) == QUEUEING,
        made_at=_moment(job["metadata"].get("creationTimestamp")),
        lost_a_node=_outlived_grace(job),
    )
    attempt = attempt._replace(pods=(*seen, *_completed(attempt, job, departed, now)))
    return attempt._replace(pods=(*attempt.pods, *_taken_away(attempt, job, pods, departed, now)))


def job_end(job: Object) -> tuple[Literal["Complete", "Failed"] | None, str | None]:
    """The condition that ends a Job. It comes only once every pod has ended."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition.get("status") != "True":
            continue
        if condition["type"] == "Complete":
            return "Complete", condition.get("reason")
        if condition["type"] == "Failed":
            return "Failed", condition.get("reason")
    return None, None


def _outlived_grace(job: Object) -> bool:
    """Whether a pod was still there long after its Job had failed, and had told it to end.

    Its kubelet would have ended it in time, so its node did not answer. The Job controller sets
    FailureTarget when it begins to delete pods, Failed when the last one is gone, and leaves both:
    all that still tells of the node to an operator that was away meanwhile.
    """
    found = (job.get("status") or {}).get("conditions") or []
    times = {c["type"]: c.get("lastTransitionTime") for c in found if c.get("status") == "True"}
    told, gone = times.get("FailureTarget"), times.get("Failed")
    if not told or not gone:
        return False
    grace = timedelta(seconds=job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"])
    return read(gone) > read(told) + grace + NODE_SILENCE


def _completed(
    attempt: Attempt, job: Object, departed: list[Object], now: datetime
) -> Iterator[Pod]:
    """Pods that succeeded and went before the attempt was over, or before its end was counted: a
    drain deletes such pods, too. Where nobody had seen one, the Job tells of it.
    """
    uid, there = job["metadata"]["uid"], {found.completion_index for found in attempt.pods}
    for item in departed:
        last = pod(item, now)
        if last.phase == "Succeeded" and controller_uid(item) == uid:
            there.add(last.completion_index)
            yield last
    for index in _indexes((job.get("status") or {}).get("completedIndexes") or "", attempt.size):
        if index not in there:
            yield Pod(f"{name_of(job)}-{index}", index, phase="Succeeded")


def _indexes(text: str, size: int) -> Iterator[int]:
    """`0,2-4`, as the Job controller writes it: 0, 2, 3 and 4. Others may write anything."""
    for part in text.split(","):
        first, _, last = part.partition("-")
        ends = (first, last or first)
        if all(end.isdecimal() and len(end) < INDEX_DIGITS for end in ends):
            yield from range(int(ends[0]), min(int(ends[1]) + 1, size))


def _taken_away(
    attempt: Attempt, job: Object, pods: list[Object], departed: list[Object], now: datetime
) -> Iterator[Pod]:
    """A pod that somebody took away, which failed the Job: a disruption, not a fault.

    A pod of ours that fails stays until its Job goes, unless something outside took it away. With
    it go its peers, which the Job controller deletes: their ends tell nothing.
    """
    if attempt.condition != "Failed" or attempt.reason == "DeadlineExceeded":
        return
    went = [found for item in departed if (found := _as_it_went(item, job, now))]
    named = [found for found in went if found.reason != "PodDeleted"]
    if named:
        yield min(named, key=lambda found: found.finished_at or 0.0)
        return
    by_itself = any(_says_why(item, pod(item, now)) for item in pods)
    there = {found.completion_index for found in attempt.pods}
    missing = next((i for i in range(attempt.size) if i not in there), None)
    failed = [found for found in attempt.pods if found.phase == "Failed"]
    if by_itself or (missing is None and not failed):
        return
    unseen = Pod(f"{name_of(job)}-{missing}", missing or 0)
    first = next(iter(went), unseen if missing is not None else failed[0])
    taken = first._replace(phase="Failed", reason="PodDeleted", message=DELETED)
    yield taken._replace(is_disrupted=True)


def _says_why(item: Object, seen: Pod) -> bool:
    """Whether it failed for a reason of its own: that it ended when it was told to, by a deletion,
    is none."""
    was_told = "deletionTimestamp" in item["metadata"] and seen.exit_code in TOLD_TO_END
    return seen.phase == "Failed" and not (was_told and seen.reason is None)


def _as_it_went(item: Object, job: Object, now: datetime) -> Pod | None:
    """A pod of the Job that something outside took away; None where it had succeeded by then.

    Its kubelet's last word may be missing, and the condition that names whoever took it, too.
    """
    last = pod(item, now)
    if last.phase == "Succeeded" or controller_uid(item) != job["metadata"]["uid"]:
        return None
    found = (item.get("status") or {}).get("conditions") or []
    target: Object = next((c for c in found if c["type"] == "DisruptionTarget"), {})
    told = last.reason if last.is_lost or (last.phase == "Failed" and last.is_disrupted) else None
    reason = told or (target.get("reason") if last.is_disrupted else None) or "PodDeleted"
    message = last.message if last.phase == "Failed" else target.get("message")
    return last._replace(
        phase="Failed", reason=reason, message=message or DELETED, is_disrupted=True
    )


def pod(item: Object, now: datetime) -> Pod:
    """One pod, as its kubelet, the scheduler and the node controller have described it."""
    meta, status = item["metadata"], item.get("status") or {}
    phase: PodPhase = PHASES.get(status.get("phase", ""), "Unknown")
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    ended, others = _ends(status)
    if phase == "Failed" and not ended and others:
        ended = _told_of(*others[0])
    if phase == "Failed" and ended.get("exitCode") == 0 and others and not status.get("reason"):
        phase = "Succeeded"  # the trainer, whose work this is; what failed is a webhook's
    text = ended.get("message") or ""
    result = parse_result(text) if text else None
    seen = Pod(
        name=meta["name"],
        completion_index=_index(meta),
        phase=phase,
        exit_code=ended.get("exitCode"),
        message=text,
        is_disrupted=conditions.get("DisruptionTarget", {}).get("status") == "True",
        finished_at=_unix(ended.get("finishedAt")),
        node=(item.get("spec") or {}).get("nodeName"),
        result=result,
    )
    if phase == "Failed":
        is_disrupted = seen.is_disrupted or bool(REJECTED.fullmatch(status.get("reason") or ""))
        failure = _failure(status, ended, conditions)
        return seen._replace(**failure, is_disrupted=is_disrupted)
    if phase in ("Pending", "Running") and seen.node and _is_lost(meta, conditions, now):
        return seen._replace(reason="NodeLost", message="Its node does not answer.")
    if phase == "Pending":
        return seen._replace(**_waiting(meta, status, conditions))
    return seen._replace(outlived_by=_outlived_by(status)) if phase == "Running" else seen


def _outlived_by(status: Object) -> tuple[str, ...]:
    """Containers that a webhook added and that run, where the trainer's own has ended: for them its
    pod goes on, with its devices. Sidecars of Kubernetes' own kind end by themselves."""
    states = {i.get("name"): i.get("state") or {} for i in status.get("containerStatuses") or []}
    if "terminated" not in states.get(CONTAINER_NAME, {}):
        return ()
    return tuple(str(name) for name, state in states.items() if "running" in state)


def _index(meta: Object) -> int:
    index = (meta.get("annotations") or {}).get(COMPLETION_INDEX, "0")
    return int(index) if index.isdecimal() and len(index) < INDEX_DIGITS else 0


def _ends(status: Object) -> tuple[Object, list[tuple[str, Object]]]:
    """How the trainer's container ended; the names and ends of others that failed, which are a
    webhook's."""
    own: Object = {}
    others: list[tuple[str, Object]] = []
    for group in ("containerStatuses", "initContainerStatuses"):
        for item in status.get(group) or []:
            ended = (item.get("state") or {}).get("terminated") or {}
            if item.get("name") == CONTAINER_NAME:
                own = ended
            elif ended.get("exitCode"):
                others.append((str(item.get("name")), ended))
    return own, others


def _told_of(name: str, ended: Object) -> Object:
    """The end of a pod whose trainer never began, as another container failed. Its exit code means
    nothing to us, whatever ours would mean by that number."""
    head = f"{name}, which a webhook added, ended with exit code {ended['exitCode']}."
    said = f"{head} {ended.get('message') or ''}".strip()
    reason = ended.get("reason") if _says_more(ended) else "ContainerFailed"
    return {"reason": reason, "message": said, "finishedAt": ended.get("finishedAt")}


def _failure(status: Object, ended: Object, conditions: Mapping[str, Object]) -> dict[str, Any]:
    """Reason and message of an end that was no success.

    The pod's own reason (Evicted, DeadlineExceeded, NodeShutdown, Preempting…) is the cluster's
    doing and outranks the container's, of which only OOMKilled says more than the exit code.
    """
    disruption = conditions.get("DisruptionTarget", {})
    own = status.get("reason") or (ended.get("reason") if _says_more(ended) else None)
    if own is None and disruption.get("status") == "True":
        own = disruption.get("reason")
    message = ended.get("message") or status.get("message") or disruption.get("message") or ""
    return {"reason": own, "message": message}


def _says_more(ended: Object) -> bool:
    return ended.get("reason") not in (None, "Error", "Completed")


def _waiting(meta: Object, status: Object, conditions: Mapping[str, Object]) -> dict[str, Any]:
    """Why a pod does not run yet: the scheduler's words, or those of the kubelet. What was said of
    one that is to go holds no longer."""
    if "deletionTimestamp" in meta:
        return {
            "reason": "Terminating",
            "message": f"{meta['name']} was deleted, and has yet to go",
        }
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        reason = scheduled.get("reason") or "Unschedulable"
        return {"reason": reason, "message": scheduled.get("message") or ""}
    for group in ("initContainerStatuses", "containerStatuses"):
        for item in status.get(group) or []:
            waiting = (item.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
                return {"reason": waiting["reason"], "message": waiting.get("message") or ""}
    return {}


def _is_lost(meta: Object, conditions: Mapping[str, Object], now: datetime) -> bool:
    """Whether the node has stopped to answer, so that nobody can see whether the pod still runs.

    The node controller sets Ready to False and leaves ContainersReady, which only the kubelet
    writes; or the pod's deletion is overdue, which only its kubelet can complete. Where a webhook
    gave the pod a readiness gate, the kubelet itself says so with a reason of its own.
    """
    due = meta.get("deletionTimestamp")  # when the grace period ends
    if due and now > read(due) + NODE_SILENCE:
        return True
    ready, containers = conditions.get("Ready", {}), conditions.get("ContainersReady", {})
    is_gated = ready.get("reason") == "ReadinessGatesNotReady"
    is_unready = ready.get("status") == "False" and not is_gated
    return is_unready and containers.get("status") == "True"


def next_look(pods: Iterable[Object], now: datetime) -> datetime | None:
    """When a pod that is being deleted will be overdue, which no event tells."""
    due = [
        read(d) + NODE_SILENCE for item in pods if (d := item["metadata"].get("deletionTimestamp"))
    ]
    return min((moment for moment in due if moment > now), default=None)


def _unix(text: str | None) -> float | None:
    at = _moment(text)
    return at.timestamp() if at else None


def _moment(text: str | None) -> datetime | None:
    return read(text) if text else None
