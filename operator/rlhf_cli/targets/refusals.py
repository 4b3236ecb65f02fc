"""What an API server's refusal means to a user, and what to do about it."""

from __future__ import annotations

from typing import Final

from rlhf_operator.api import ApiError

from rlhf_cli.failures import DENIED, FAILED, TRANSIENT, UNAVAILABLE, USAGE, Failure
from rlhf_cli.program import program

VERBS: Final = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}


def refusal(error: ApiError, verb: str, what: str, namespace: str | None) -> Failure:
    """`verb` as RBAC calls it, `what`: `rlhfjobs/assistant`, `pods/log`, …"""
    said = error.args[0]
    plural, _, name = what.partition("/")
    where = f" -n {namespace}" if namespace else " -A"
    if error.code == 404 and error.reason != "NotFound":
        return no_crd()
    if error.code == 404:
        return Failure(f"there is no {what}: {said}")
    if error.code == 403:
        return Failure(
            f"not allowed: {said}",
            f"ask for the right, and check it: kubectl auth can-i {verb} {_resource(plural, name)}"
            f"{where}",
            exit_code=DENIED,
        )
    if error.code == 401:
        return Failure(
            "the API server does not know you: the login of the kubeconfig is missing or has "
            "expired",
            "log in again, or name another --context",
            exit_code=DENIED,
        )
    if error.code == 409:
        return Failure(f"{name or what} has just changed; run again", exit_code=TRANSIENT)
    if error.code in (400, 422):
        return Failure(f"the API server refuses it: {said}", exit_code=USAGE)
    if error.code == 0:
        return unreachable(f"the API server does not answer: {said}")
    code = TRANSIENT if error.is_passing else FAILED
    return Failure(f"the API server refused to {verb} {what}: {said}", exit_code=code)


def _resource(plural: str, name: str) -> str:
    return f"{plural}/log" if name == "log" else plural


def no_crd() -> Failure:
    """The API server does not serve RLHFJobs at all."""
    return Failure(
        "the cluster knows no RLHFJobs",
        f"install the CustomResourceDefinition: {program()} schema --crd | "
        "kubectl apply --server-side -f -",
    )


def unreachable(said: str) -> Failure:
    """There is no cluster to talk to."""
    return Failure(
        said,
        "name a cluster with --kubeconfig or --context; kubectl cluster-info shows whether it "
        "answers",
        exit_code=UNAVAILABLE,
    )
