"""The operator and what it serves: resource, lease, jobs that nobody looks at."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Final

from rlhf_api.crd import crd
from rlhf_operator.api import ApiError, Object, Resource
from rlhf_operator.cluster import RLHFJOBS
from rlhf_operator.leader import LEASE_NAME, LEASES

from rlhf_cli.doctor.findings import Finding, Look
from rlhf_cli.output import age
from rlhf_cli.program import program

CRDS: Final = Resource(
    "apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions"
)
USUAL: Final = ("rlhf-system", "rlhf-operator")
"""Namespaces where the operator is looked for by a user who may not look everywhere."""
UNSEEN_AFTER: Final = 60.0
"""Seconds after which a new job should have been looked at."""
SLACK: Final = 30.0
"""Seconds that two machines' clocks may differ by."""
INSTALL: Final = "kubectl apply --server-side -f -"


async def resource(look: Look) -> list[Finding]:
    """The CustomResourceDefinition: is it there, established, and this version's."""
    subject, install = "Resource", f"{program()} schema --crd | {INSTALL}"
    expected = crd()
    try:
        found = await look.api.get(CRDS, None, expected["metadata"]["name"])
    except ApiError as error:
        if error.code == 404:
            return [
                Finding("error", subject, "the cluster knows no RLHFJobs", f"install: {install}")
            ]
        if error.code != 403:
            raise
        return [await _served(look)]
    held = {
        c["type"]
        for c in (found.get("status") or {}).get("conditions", [])
        if c["status"] == "True"
    }
    if "Established" not in held:
        return [
            Finding(
                "error", subject, "the definition is not established", f"apply it again: {install}"
            )
        ]
    name = RLHFJOBS.api_version
    if _schema(found) != _schema(expected):
        said = f"{name} is served, and is another version's than this {program()}"
        return [
            Finding("warning", subject, said, f"bring both to one version; the resource: {install}")
        ]
    return [Finding("ok", subject, f"{name} is served, of this version")]


async def _served(look: Look) -> Finding:
    """What a user can tell who may not read definitions."""
    try:
        await look.api.list(RLHFJOBS, look.namespace)
    except ApiError as error:
        if error.code == 404:
            return Finding(
                "error", "Resource", "the cluster knows no RLHFJobs", "ask for the operator"
            )
        if error.code != 403:
            raise
    return Finding("ok", "Resource", f"{RLHFJOBS.api_version} is served")


def _schema(definition: Object) -> object:
    return definition["spec"]["versions"][0]["schema"]


async def lease(look: Look) -> list[Finding]:
    """Whether an operator leads, by the age of its lease. Beside one that leads, what another
    installation has left is no error.
    """
    found = await _leases(look)
    if not found:
        return [
            Finding(
                "error",
                "Operator",
                f"no operator holds a lease {LEASE_NAME}",
                "start one: docs/guides/on-a-cluster.md",
            )
        ]
    said = [_lease(item) for item in found]
    if not any(finding.level == "ok" for finding in said):
        return said
    return [f if f.level == "ok" else f._replace(level="warning") for f in said]


async def _leases(look: Look) -> list[Object]:
    try:
        return await look.listed(LEASES, fields=f"metadata.name={LEASE_NAME}")
    except ApiError as error:
        if error.code != 403:
            raise
        refused = error
    found = []
    for namespace in dict.fromkeys((look.namespace, *USUAL)):
        with contextlib.suppress(ApiError):  # it is not there, or this user may not see it
            found.append(await look.api.get(LEASES, namespace, LEASE_NAME))
    if not found:
        raise refused
    return found


def _lease(item: Object) -> Finding:
    spec, where = item["spec"], item["metadata"]["namespace"]
    holder, renewed = spec.get("holderIdentity"), spec.get("renewTime")
    if not holder or not renewed:
        said = f"the lease in {where} is free: no operator runs there"
        return Finding("error", "Operator", said, "start it, or look at why its pods do not run")
    seconds = (datetime.now(UTC) - datetime.fromisoformat(renewed)).total_seconds()
    if seconds > float(spec.get("leaseDurationSeconds") or 0) + SLACK:
        said = f"{holder} in {where} last renewed its lease {age(renewed)} ago"
        advice = f"look at it: kubectl get pods -n {where}"
        return Finding("error", "Operator", said, advice)
    return Finding("ok", "Operator", f"{holder} in {where} leads")


async def unseen_jobs(look: Look) -> list[Finding]:
    """Jobs of the namespace that no operator has looked at."""
    items = await look.listed(RLHFJOBS, everywhere=False)
    unseen = [item["metadata"]["name"] for item in items if _is_unseen(item)]
    if unseen:
        return [
            Finding(
                "error",
                "Namespace",
                f"no operator looks at {', '.join(unseen)} in {look.namespace}",
                f"have the operator serve it: --namespace {look.namespace}, or watchNamespaces of "
                "its chart",
            )
        ]
    if not items:
        said = f"no job in {look.namespace} yet, so nothing tells whether an operator serves it"
        return [Finding("ok", "Namespace", said)]
    count = "1 job" if len(items) == 1 else f"{len(items)} jobs"
    return [Finding("ok", "Namespace", f"{count} in {look.namespace}, each looked at")]


def _is_unseen(item: Object) -> bool:
    meta, status = item["metadata"], item.get("status") or {}
    made = datetime.fromisoformat(meta["creationTimestamp"])
    is_old = (datetime.now(UTC) - made).total_seconds() > UNSEEN_AFTER
    return is_old and status.get("observedGeneration", -1) == -1
