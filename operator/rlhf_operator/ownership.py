"""Whose an object is, by its owner and by the marks that we leave on it; and what is said of one
whose name we wanted to give. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_api.job import RLHFJob

from rlhf_operator.names import (
    ANNOTATION_HASH,
    ANNOTATION_JOB_UID,
    ANNOTATION_SETTINGS,
    LABEL_ATTEMPT,
    LABEL_JOB,
    LABEL_STAGE,
    child_name,
    service_name,
)

Object = dict[str, Any]


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


def owner_name(item: Object) -> str | None:
    """Name of the owner that controls it."""
    owner = controller(item)
    return owner["name"] if owner else None


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


def attempt_of(item: Object) -> tuple[str, int] | None:
    """Stage and number by the labels; None where they are missing or make no sense."""
    labels = item["metadata"].get("labels") or {}
    stage, number = labels.get(LABEL_STAGE), labels.get(LABEL_ATTEMPT, "")
    return (stage, int(number)) if stage and number.isdecimal() else None


def attempt_it_serves(item: Object, job: str, uid: str) -> tuple[str, int] | None:
    """Stage and number of the attempt that a child belongs to; None where it is not ours."""
    key = attempt_of(item)
    if key is None or not is_ours(item, uid):
        return None
    child = child_name(job, *key)
    return key if name_of(item) in (child, service_name(child)) else None


def is_orphan(item: Object) -> bool:
    """Whether it is a pod that we had made, and that its Job has left to itself."""
    marks = item["metadata"].get("annotations") or {}
    return controller(item) is None and ANNOTATION_JOB_UID in marks


def relabelled(item: Object, workload: Object) -> Object | None:
    """A pod of this Job with the labels of ours that it has lost; None where it has lost none."""
    has = item["metadata"].get("labels") or {}
    ours = workload["metadata"].get("labels") or {}
    had = {name: ours[name] for name in (LABEL_JOB, LABEL_STAGE, LABEL_ATTEMPT) if name in ours}
    if had.items() <= has.items():
        return None
    return item | {"metadata": item["metadata"] | {"labels": has | had}}


def is_the_same(found: Object, wanted: Object) -> bool:
    """Same owner and same work; a claim without owner is whoever's comes first."""
    return controller_uid(found) == controller_uid(wanted) and _works_on_the_same(found, wanted)


def may_serve(found: Object, wanted: Object, uid: str) -> bool:
    """Whether what is there can be what the RLHFJob with this UID wants, as it is.

    A claim goes on serving where `retain` was edited since it was made: whose it is decides only
    what becomes of it at the end.
    """
    is_claim = found["kind"] == "PersistentVolumeClaim"
    return is_the_same(found, wanted) or (is_claim and controller_uid(found) in (None, uid))


def is_disowned(found: Object, wanted: Object) -> bool:
    """Whether it is ours, and somebody has taken its owner away: it would outlive the RLHFJob."""
    is_marked = ANNOTATION_SETTINGS in (wanted["metadata"].get("annotations") or {})
    is_free = controller_uid(found) is None and not is_of_another(found, controller_uid(wanted))
    return is_marked and is_free and _works_on_the_same(found, wanted)


def is_unlabelled(found: Object, wanted: Object) -> bool:
    """Whether it is ours, and somebody has taken a label away by which we watch it."""
    is_marked = ANNOTATION_SETTINGS in (wanted["metadata"].get("annotations") or {})
    asked, there = wanted["metadata"]["labels"], found["metadata"].get("labels") or {}
    return is_marked and is_the_same(found, wanted) and not asked.items() <= there.items()


def _works_on_the_same(found: Object, wanted: Object) -> bool:
    asked = wanted["metadata"].get("annotations") or {}
    there = found["metadata"].get("annotations") or {}
    return all(there.get(k) == asked.get(k) for k in (ANNOTATION_HASH, ANNOTATION_SETTINGS))


def is_left_over(found: Object, wanted: Object) -> bool:
    """Whether it belongs to an RLHFJob of the same name that is gone: it will be collected."""
    owner, ours = controller(found), controller(wanted)
    same = ours and owner and (owner["kind"], owner["name"]) == (ours["kind"], ours["name"])
    return bool(same and owner and ours and owner["uid"] != ours["uid"])


def going(found: Object, wanted: Object) -> str:
    """What is to be said of an object that has to go before ours can be made."""
    meta = wanted["metadata"]
    name = f"{wanted['kind']} {meta['name']}"
    if wanted["kind"] != "PersistentVolumeClaim" or is_left_over(found, wanted):
        return f"{name} of an earlier RLHFJob of this name is still being deleted."
    pods = f"-l {LABEL_JOB}={meta['labels'][LABEL_JOB]} -n {meta['namespace']}"
    return (
        f"{name} is being deleted, with all checkpoints on it. It stays for as long as there are "
        "pods that name it, ended ones too, which go by: kubectl delete jobs "
        f"{pods}."
    )


def results_on(job: RLHFJob, wanted: Object) -> list[str]:
    """Stages that are done, and whose results are on this claim; none on any other object."""
    if wanted["kind"] != "PersistentVolumeClaim" or job.status is None:
        return []
    stages = job.status.every_stage().items()
    return [n for n, s in stages if s.finished or (s.ended and s.ended.kind == "Done")]


def claim_gone(wanted: Object, lost: Sequence[str]) -> str:
    """What is to be said where somebody has deleted it: stages that follow would find nothing."""
    return (
        f"PersistentVolumeClaim {wanted['metadata']['name']} is gone, and with it what "
        f"{', '.join(lost)} made. Restore a claim of that name from a backup, or delete this "
        "RLHFJob and apply it again: all of it is then trained anew."
    )


def owner_text(item: Object) -> str:
    """Whose it is, for people."""
    owners = item["metadata"].get("ownerReferences") or []
    return f"{owners[0]['kind']} {owners[0]['name']}" if owners else "nobody that we know"
