"""The rights of an operator, as a service account has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.control_plane import ControlPlane

RBAC = "rbac.authorization.k8s.io"
CLAIM = ["get", "list", "watch", "create"]  # deleted with the job, if at all, and not by hand
CHILD = [*CLAIM, "delete", "patch"]  # patched to get its owner back, where somebody took it away
RULES: list[dict[str, Any]] = [
    {"apiGroups": ["rlhf.dev"], "resources": ["rlhfjobs"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["rlhf.dev"], "resources": ["rlhfjobs/status"], "verbs": ["update"]},
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": CHILD},
    {"apiGroups": ["scheduling.k8s.io"], "resources": ["podgroups"], "verbs": CHILD},
    {"apiGroups": [""], "resources": ["configmaps", "services"], "verbs": CHILD},
    {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": CLAIM},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch", "delete"]},
    {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
    {"apiGroups": ["kueue.x-k8s.io"], "resources": ["workloads"], "verbs": ["list", "watch"]},
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "verbs": ["get", "create", "update"],
    },
]
"""All that an operator for one namespace needs: nothing that is cluster-wide, no Secrets."""

REVIEWER: list[dict[str, Any]] = [
    {
        "apiGroups": ["authentication.k8s.io"],
        "resources": ["tokenreviews"],
        "verbs": ["create"],
    }
]
"""What the progress server needs beyond them; TokenReviews belong to no namespace."""


def limited(control_plane: ControlPlane, namespace: str) -> Path:
    """A kubeconfig of a service account that may do what RULES say, and no more."""
    control_plane.client.create(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator"}}, namespace
    )
    _grant(control_plane, namespace, "Role", {"name": "operator", "namespace": namespace}, RULES)
    return control_plane.kubeconfig_for("operator", namespace)


def allow_reviews(control_plane: ControlPlane, namespace: str) -> None:
    """Lets the account of `limited` check the tokens of pods that report."""
    named = {"name": f"operator-{namespace}"}
    _grant(control_plane, namespace, "ClusterRole", named, REVIEWER)


def _grant(
    control_plane: ControlPlane,
    namespace: str,
    kind: str,
    metadata: dict[str, str],
    rules: list[dict[str, Any]],
) -> None:
    account = {"kind": "ServiceAccount", "name": "operator", "namespace": namespace}
    role = {"apiGroup": RBAC, "kind": kind, "name": metadata["name"]}
    common = {"apiVersion": f"{RBAC}/v1", "metadata": metadata}
    control_plane.client.apply({**common, "kind": kind, "rules": rules})
    control_plane.client.apply(
        {**common, "kind": f"{kind}Binding", "subjects": [account], "roleRef": role}
    )
