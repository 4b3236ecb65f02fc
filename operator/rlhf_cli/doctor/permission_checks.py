"""What this user may do, by SelfSubjectAccessReview."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from rlhf_api.job import GROUP

from rlhf_cli.doctor.findings import Finding, Look

PATH: Final = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


class Right(NamedTuple):
    """A verb on a kind, and the commands that need it."""

    verb: str
    group: str
    resource: str
    needed_by: str


RIGHTS: Final = (
    Right("get", GROUP, "rlhfjobs", "get, describe, status and all others"),
    Right("list", GROUP, "rlhfjobs", "list"),
    Right("watch", GROUP, "rlhfjobs", "watch, submit --wait"),
    Right("create", GROUP, "rlhfjobs", "submit"),
    Right("patch", GROUP, "rlhfjobs", "submit, suspend, resume, approve, retry, cancel"),
    Right("delete", GROUP, "rlhfjobs", "delete"),
    Right("list", "", "pods", "describe, watch, logs"),
    Right("watch", "", "pods", "watch, events -w"),
    Right("get", "", "pods/log", "logs"),
    Right("list", "", "events", "events, describe, watch"),
    Right("watch", "", "events", "watch, events -w"),
    Right("create", "", "pods", "report, plot, fetch, chat"),
    Right("get", "", "pods", "report, plot, fetch, chat"),
    Right("delete", "", "pods", "report, plot, fetch, chat, cancel --now, delete --force"),
    Right("delete", "", "persistentvolumeclaims", "delete --checkpoints"),
)


async def permissions(look: Look) -> list[Finding]:
    """One finding for all that is allowed, and one for each right that is missing."""
    allowed = await asyncio.gather(*(_is_allowed(look, right) for right in RIGHTS))
    missing = [right for right, yes in zip(RIGHTS, allowed, strict=True) if not yes]
    if not missing:
        return [Finding("ok", "Permissions", f"all that {len(RIGHTS)} checks ask for")]
    return [
        Finding(
            "warning",
            "Permissions",
            f"you may not {right.verb} {right.resource} in {look.namespace}, for {right.needed_by}",
            "ask for it: a Role with this verb, and a RoleBinding",
        )
        for right in missing
    ]


async def _is_allowed(look: Look, right: Right) -> bool:
    resource, _, subresource = right.resource.partition("/")
    asked = {
        "namespace": look.namespace,
        "verb": right.verb,
        "group": right.group,
        "resource": resource,
        "subresource": subresource,
    }
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }
    answer = await look.api.request("POST", PATH, body=body)
    return bool(answer["status"]["allowed"])
