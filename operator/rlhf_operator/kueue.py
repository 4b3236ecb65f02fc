"""What Kueue says of a Job that it holds back. Pure.

For each Job Kueue makes a Workload, whose conditions tell why it waits. It carries none of our
labels: it is known by its owner, the Job, whose name tells the attempt.
Source: Kueue's apis/kueue/v1beta2/workload_types.go and its jobframework.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from rlhf_operator.names import child_of
from rlhf_operator.render.gang.kueue import GROUP

Object = dict[str, Any]

LABEL_OWNER: Final = f"{GROUP}/job-uid"
"""On each Workload that was made for something else: that one's UID."""

DEACTIVATED: Final = (
    "It waits for no quota: suspend and resume the RLHFJob, or set spec.active of the Workload"
)


def is_workload(item: Object) -> bool:
    """Whether it is Kueue's; Kubernetes 1.35 has a Workload of its own."""
    return item["kind"] == "Workload" and str(item["apiVersion"]).startswith(f"{GROUP}/")


def rlhfjob_of(workload: Object) -> str | None:
    """The RLHFJob whose attempt it was made for; None where it is for something else."""
    owner = _owner(workload)
    found = child_of(owner["name"]) if owner else None
    return found[0] if found else None


def words(workloads: Iterable[Object], uid: str) -> str:
    """Why the Job with this UID waits; empty where that is not known."""
    own = next((item for item in workloads if (_owner(item) or {}).get("uid") == uid), None)
    return ". ".join(_said(own)) if own else ""


def _owner(workload: Object) -> Object | None:
    """The Job."""
    owners = workload["metadata"].get("ownerReferences") or []
    return next((o for o in owners if o.get("controller") and o["kind"] == "Job"), None)


def _said(workload: Object) -> Iterator[str]:
    """What took its place away, then what keeps it from having one.

    One that is not active waits for nothing. Kueue makes it so by itself, after too many tries to
    have all pods ready, or when a check rejects it; a new attempt has a Workload of its own.
    """
    status = workload.get("status") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or []}
    evicted, quota = conditions.get("Evicted", {}), conditions.get("QuotaReserved", {})
    if evicted.get("status") == "True" and _text(evicted):
        yield _text(evicted)
    if (workload.get("spec") or {}).get("active") is False:
        yield f"{DEACTIVATED} {workload['metadata']['name']} to true"
        return
    again = (status.get("requeueState") or {}).get("requeueAt")
    if again and conditions.get("Requeued", {}).get("status") == "False":
        yield f"It is queued again at {again}"
    if quota.get("status") == "False" and _text(quota) not in ("", _text(evicted)):
        yield _text(quota)
    if quota.get("status") == "True" and conditions.get("Admitted", {}).get("status") != "True":
        for check in status.get("admissionChecks") or []:
            if check.get("state") != "Ready":
                yield f"admission check {check['name']} is {check['state']}: {_text(check)}"


def _text(told: Mapping[str, Any]) -> str:
    return str(told.get("message") or "").strip().rstrip(".")
