"""Deleting an RLHFJob, and on request the claim with its checkpoints."""

from __future__ import annotations

from rlhf_api.job import RLHFJob
from rlhf_operator.api import ApiError, Resource
from rlhf_operator.cluster import RLHFJOBS

from rlhf_cli.output import full_name
from rlhf_cli.targets.cluster_requests import ClusterRequests
from rlhf_cli.targets.refusals import refusal
from rlhf_cli.targets.storage import refuse_storage_of_others
from rlhf_cli.targets.target import Object
from rlhf_cli.waiting import until

CLAIMS = Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims")


async def delete(
    target: ClusterRequests,
    job: RLHFJob,
    claim: str,
    *,
    with_checkpoints: bool,
    wait: bool,
    force: bool,
) -> list[str]:
    """What was removed and what was kept. Raises Failure."""
    name, spec = job.metadata.name, job.spec.checkpoints
    if with_checkpoints:
        refuse_storage_of_others(job)
    # Its children do not hold the job back (no blockOwnerDeletion), so pods are waited for as well.
    path = RLHFJOBS.path(target.namespace, name)
    await target.request("DELETE", path, _options(job.metadata.uid), what=f"rlhfjobs/{name}")
    if force:
        await target.kill(job)
    if wait:
        await until(lambda: _is_gone(target, job))
    said = [f"{full_name(name)} {'deleted' if wait else 'is being deleted'}"]
    if with_checkpoints:
        return [*said, await _delete_claim(target, claim)]
    if spec.claim and not spec.claim.retain:
        return [*said, f"Its claim {claim} goes with it: checkpoints.claim.retain is false."]
    where = spec.uri or f"the claim {claim}"
    return [*said, f"Its checkpoints stay in {where}."]


async def _delete_claim(target: ClusterRequests, claim: str) -> str:
    """It is made with the first attempt, and may go with the job."""
    try:
        path = CLAIMS.path(target.namespace, claim)
        await target.api.request("DELETE", path, body=_options())
    except ApiError as error:
        if error.code == 404:
            return f"There is no claim {claim}: none was made yet, or it has gone already."
        what = f"{CLAIMS.plural}/{claim}"
        raise refusal(error, "delete", what, target.namespace) from None
    return f"persistentvolumeclaim/{claim} deleted"


def _options(uid: str | None = None) -> Object:
    return {"propagationPolicy": "Foreground", "preconditions": {"uid": uid} if uid else {}}


async def _is_gone(target: ClusterRequests, job: RLHFJob) -> bool:
    try:
        found = await target.api.get(RLHFJOBS, target.namespace, job.metadata.name)
    except ApiError as error:
        if error.code == 404:
            return not await target.pods(job)
        what = f"rlhfjobs/{job.metadata.name}"
        raise refusal(error, "get", what, target.namespace) from None
    return bool(found["metadata"]["uid"] != job.metadata.uid)
