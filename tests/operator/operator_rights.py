"""The rights of an operator, as a service account has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from cluster.control_plane import ControlPlane

RBAC = "rbac.authorization.k8s.io"
CHART = Path(__file__).parents[2] / "charts" / "rlhf-operator"
_WRITTEN: dict[str, Any] = yaml.safe_load((CHART / "files/rbac.yaml").read_text())
OF_GANGS: dict[str, list[dict[str, Any]]] = _WRITTEN["gangs"]
"""The rights that the chart gives for each gang scheduler."""
GIVEN: dict[str, list[dict[str, Any]]] = {
    **_WRITTEN,
    "gangs": [rule for rules in OF_GANGS.values() for rule in rules],
}
"""All the rights that it gives, by what they are for."""
RULES = [*GIVEN["jobs"], *GIVEN["gangs"], *GIVEN["lease"]]
"""All that an operator for one namespace needs: nothing that is cluster-wide, no Secrets."""


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
    _grant(control_plane, namespace, "ClusterRole", named, GIVEN["progress"])


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
