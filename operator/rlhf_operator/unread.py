"""Jobs that this version of the operator cannot read, and what is said of them. Pure.

Resource, operator and what an operator has written may be of different versions: while an upgrade
is under way, after one that was taken back, where only one of them is upgraded.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from rlhf_api.job import RLHFJob
from rlhf_api.problems import InvalidJob
from rlhf_api.status import Condition
from rlhf_api.validation import kept_job

from rlhf_operator.conditions import KINDS, State
from rlhf_operator.known_specs import known_job
from rlhf_operator.messages import redacted

UNTOUCHED: Final = "Pods go on, and nothing is touched until an operator that knows it leads"


INVALID: Final = "InvalidSpec"


def readable_job(manifest: dict[str, Any]) -> RLHFJob:
    """The job, or InvalidJob with every problem at once.

    Rules between fields that an upgrade brings are not asked of a spec that was accepted before
    them, as the API server does not (KEP-4008, ratcheting); nor of a job that is to stand still.
    """
    try:
        return known_job(manifest)
    except InvalidJob:
        with contextlib.suppress(InvalidJob):
            job = kept_job(manifest)
            is_to_stand_still = job.spec.suspend or job.metadata.deletion_timestamp
            if is_to_stand_still or _was_accepted(manifest):
                return job
        raise


def _was_accepted(manifest: dict[str, Any]) -> bool:
    """Whether this very spec was looked at before, and found right."""
    told = conditions_of(manifest)
    is_known = _status(manifest).get("observedGeneration") == _generation(manifest)
    return is_known and bool(told) and all(item.reason != INVALID for item in told)


def state_of(invalid: InvalidJob) -> State:
    """What is wrong, and whose turn it is.

    The API server drops fields that the resource does not have. One that we do not know came with a
    newer resource, which fills in its defaults where nobody has written anything, and a newer
    operator is on its way.
    """
    said = redacted(str(invalid), 768)
    if has_unread_status(invalid):
        told = f"Another version of the operator has written what this one cannot read: {said}"
        return State("Stalled", "StatusUnreadable", f"{told}. {UNTOUCHED}.")
    if invalid.is_newer:
        paths = redacted(", ".join(problem.path for problem in invalid.problems), 768)
        told = f"The cluster's resource is newer than this operator, and has {paths}"
        return State("Reconciling", "ResourceIsNewer", f"{told}. {UNTOUCHED}.")
    return State("Stalled", INVALID, redacted(str(invalid)))


def has_unread_status(invalid: InvalidJob) -> bool:
    """Whether the status is of another version: it tells what has been trained, and stays."""
    return any(problem.path.partition(".")[0] == "status" for problem in invalid.problems)


def is_left_alone(manifest: dict[str, Any], invalid: InvalidJob) -> bool:
    """Whether nothing is to be said, as nothing went on when this very spec was last looked at: of
    a job that is done, a resource that was upgraded is no failure."""
    if not (invalid.is_newer or has_unread_status(invalid)):
        return False
    known = _status(manifest).get("observedGeneration")
    held = [c.type for c in conditions_of(manifest) if c.status == "True" and c.type in KINDS]
    return known == _generation(manifest) and held not in ([], ["Reconciling"])


def conditions_of(manifest: dict[str, Any]) -> list[Condition]:
    """Those that can be read."""
    found: list[Condition] = []
    listed = _status(manifest).get("conditions")
    for item in listed if isinstance(listed, list) else ():
        with contextlib.suppress(ValueError):
            found.append(Condition.model_validate(item, by_alias=True, by_name=False))
    return found


def _generation(manifest: dict[str, Any]) -> int:
    generation: int = manifest["metadata"].get("generation", 1)
    return generation


def _status(manifest: dict[str, Any]) -> dict[str, Any]:
    status = manifest.get("status")
    return status if isinstance(status, dict) else {}
