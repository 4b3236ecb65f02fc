"""deploy/rbac.yaml: the account of an operator that runs outside of the cluster. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import yaml

NAME: Final = "rlhf-operator"
NAMESPACE: Final = "rlhf-system"
GROUP: Final = "rbac.authorization.k8s.io"
HEAD: Final = """\
# The account of an operator that runs outside of the cluster, and all that it may do. Made from
# charts/rlhf-operator/files/rbac.yaml by `make generate`; the chart makes the same for one inside.
#   kubectl apply -f deploy/rbac.yaml
#   kubectl create rolebinding rlhf-operator --clusterrole=rlhf-operator \\
#     --serviceaccount=rlhf-system:rlhf-operator -n NAMESPACE     for each namespace that it serves
# An operator for all namespaces gets a clusterrolebinding in place of these.
"""

Object = dict[str, Any]
Rules = Mapping[str, Any]


def account_text(rules: Rules) -> str:
    """The file, from the chart's rules: lists of them, and below `gangs` one for each scheduler."""
    return HEAD + yaml.safe_dump_all(_objects(rules), sort_keys=False)


def _objects(rules: Rules) -> Iterable[Object]:
    yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    account = {"name": NAME, "namespace": NAMESPACE}
    yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}
    gangs = [rule for of_one in rules["gangs"].values() for rule in of_one]
    yield _role("ClusterRole", {"name": NAME}, [*rules["jobs"], *gangs])
    yield from bound("Role", {"name": f"{NAME}-lease", "namespace": NAMESPACE}, rules["lease"])
    yield from bound("ClusterRole", {"name": f"{NAME}-progress"}, rules["progress"])


def bound(kind: str, metadata: Object, rules: Sequence[Object]) -> Iterable[Object]:
    """A Role or ClusterRole, and its binding to the account."""
    yield _role(kind, metadata, rules)
    yield {
        "apiVersion": f"{GROUP}/v1",
        "kind": f"{kind}Binding",
        "metadata": dict(metadata),
        "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}],
        "roleRef": {"apiGroup": GROUP, "kind": kind, "name": metadata["name"]},
    }


def _role(kind: str, metadata: Object, rules: Sequence[Object]) -> Object:
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": kind,
        "metadata": dict(metadata),
        "rules": list(rules),
    }
