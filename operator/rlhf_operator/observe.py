"""From Kubernetes objects to what the plan reads. Pure: a Job and pods in, an Attempt out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from rlhf_api.run import ExitCode

from rlhf_operator import kueue
from rlhf_operator.names import (
    ANNOTATION_GANG,
    ANNOTATION_HASH,
    ANNOTATION_SETTINGS,
    child_name,
)
from rlhf_operator.observe_pod import INDEX_DIGITS, NODE_SILENCE, index_of, moment, pod
from rlhf_operator.observed import Attempt, Pod
from rlhf_operator.ownership import (
    attempt_it_serves,
    attempt_of,
    controller_uid,
    is_of_another,
    is_orphan,
    name_of,
    owner_name,
)
from rlhf_operator.render.gang import has_queue
from rlhf_operator.times import read

Object = dict[str, Any]

TOLD_TO_END: Final = (137, ExitCode.TERMINATED)
DELETED: Final = "The pod was deleted before it had ended."


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
    mine = {key: item for item in jobs if (key := attempt_it_serves(item, job, uid))}
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
        and (key := attempt_it_serves(item, job, uid))
    }
    return tuple(sorted(found - {(a.stage, a.number) for a in shown}))


def attempt_of_pod(item: Object, job: str, uid: str, now: datetime) -> tuple[str, int] | None:
    """Stage and number of the attempt that a pod counts for; None where it is a stranger's."""
    key = attempt_of(item)
    if key is None or (is_of_another(item, uid) and not pod(item, now).is_live):
        return None
    is_ours = is_orphan(item) or owner_name(item) == child_name(job, *key)
    return key if is_ours else None


def _is_replaced(pods: Iterable[Object]) -> bool:
    """Whether a Job has made another pod in the place of one that it knows no more. One that lost
    its owner alone gets it back from there."""
    places: dict[bool, set[int]] = {True: set(), False: set()}
    for item in pods:
        places[is_orphan(item)].add(index_of(item["metadata"]))
    return bool(places[True] & places[False])


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
    return is_orphan(item) and not is_being_deleted and not is_of_another(item, uid)


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
        has_queue=has_queue(annotations.get(ANNOTATION_GANG)),
        made_at=moment(job["metadata"].get("creationTimestamp")),
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
