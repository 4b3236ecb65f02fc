"""Whose an object of a name is that we wanted to give, and what a refusal of it means. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from rlhf_api.job import RLHFJob

from rlhf_operator.api import ApiError, Object
from rlhf_operator.controller import Refused
from rlhf_operator.names import ANNOTATION_HASH, ANNOTATION_SETTINGS, LABEL_JOB
from rlhf_operator.observe import controller, controller_uid, is_of_another

QUOTA: Final = ("exceeded quota", "status unknown for quota")
"""What the API server says where a quota is used up, and where it is so new that nobody has added
up yet."""
DENIED: Final = re.compile("denied (the )?request")
"""As the API server words what admission policies, and webhooks, say."""
NO_RIGHT: Final = re.compile(r'User "[^"]*" cannot |RBAC: ')
"""As it words that somebody has no right (apiserver, responsewriters.Forbidden)."""
USED: Final = re.compile(r", used: .*?(?=, limited: )")


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


def refusal(error: ApiError, item: Object, doing: str = "") -> Exception:
    """What the API server says of a change that it does not take; passing errors stay errors.

    But for a webhook of somebody else that does not answer: that lasts until somebody mends it. One
    that says no may do so with any code.
    `doing`: what was to be done to the object, where it was not to be made.
    """
    said = _said(error, item, doing)
    if error.code >= 500 and "failed calling webhook" in str(error):
        return Refused("Reconciling", "WebhookFailed", said)
    if error.is_passing and not is_denied(error):
        return error
    if error.code == 403 and any(text in str(error) for text in QUOTA):
        return Refused("Reconciling", "QuotaExceeded", said)
    if error.code == 403 and "being terminated" in str(error):
        return Refused("Reconciling", "NamespaceTerminating", said)
    if error.code == 403:
        return Refused("Stalled", "Forbidden", said)
    return Refused("Stalled", "ChildRefused", said)


def lasting(error: ApiError, item: Object, doing: str = "") -> Refused:
    """What should have passed by now, and may still."""
    return Refused("Reconciling", "RequestFails", _said(error, item, doing))


def is_denied(error: ApiError) -> bool:
    """Whether a policy or a webhook has looked at the object, and says no."""
    return bool(DENIED.search(str(error)))


def is_of_rights(error: ApiError) -> bool:
    """Whether whoever asks has no right to; all else that is forbidden, an admission plug-in has
    looked at."""
    return error.code == 403 and bool(NO_RIGHT.search(str(error)))


def _said(error: ApiError, item: Object, doing: str) -> str:
    told = without_use(str(error))
    return f"{doing} {item['kind']} {item['metadata']['name']}: {told}".strip()


def without_use(text: str) -> str:
    """What a quota says, without what others use at that moment, which would have the status
    written again and again."""
    return USED.sub("", text)
