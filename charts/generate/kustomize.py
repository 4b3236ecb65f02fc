"""kustomize/: a base of the chart's objects, and a component for each gang scheduler. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import yaml
from account import NAME, NAMESPACE, Object, bound

HEAD: Final = "# Made from charts/rlhf-operator by `make generate`.\n"
VALUES: Final = {
    "crds": {"enabled": False},
    "jobDefaults": {"gangSchedulers": ["none"]},
    # Kubernetes puts in the namespace that an overlay chooses.
    "progress": {"url": f"http://{NAME}.$(RLHF_LEASE_NAMESPACE).svc:8082"},
}
"""With these Helm renders the base: the resource comes from crds/, gangs from components."""
OF_HELM: Final = ("helm.sh/chart", "app.kubernetes.io/managed-by")
RESTRICTED: Final = {"pod-security.kubernetes.io/enforce": "restricted"}


def files(rendered: Sequence[Object], gangs: Mapping[str, Sequence[Object]]) -> dict[str, str]:
    """The text of each file by its path, from the chart's objects and the rules of its gangs."""
    made = {
        "base/kustomization.yaml": _kustomization(
            "Kustomization", {"resources": ["../../crds", "operator.yaml"]}
        ),
        "base/operator.yaml": _text(_base(rendered)),
    }
    for name, rules in gangs.items():
        if rules:
            folder = f"components/{name}"
            labelled = {"name": f"{NAME}-{name}", "labels": {"app.kubernetes.io/name": NAME}}
            parts = {"resources": ["rbac.yaml"], "patches": [{"path": "operator.yaml"}]}
            made[f"{folder}/kustomization.yaml"] = _kustomization("Component", parts)
            made[f"{folder}/operator.yaml"] = _text([_operator(name)])
            made[f"{folder}/rbac.yaml"] = _text(bound("ClusterRole", labelled, rules))
    return made


def _base(rendered: Sequence[Object]) -> Iterator[Object]:
    namespace = {"name": NAMESPACE, "labels": RESTRICTED}
    yield {"apiVersion": "v1", "kind": "Namespace", "metadata": namespace}
    for item in rendered:
        if "helm.sh/hook" not in item["metadata"].get("annotations", {}):
            yield _by_variables(_without_helm(item))


def _without_helm(item: Any) -> Any:
    """Without the labels that are true of a release only, wherever they stand."""
    if isinstance(item, dict):
        return {key: _without_helm(part) for key, part in item.items() if key not in OF_HELM}
    return [_without_helm(part) for part in item] if isinstance(item, list) else item


def _by_variables(item: Object) -> Object:
    """A Deployment with variables in place of flags: an overlay can change one by its name."""
    if item["kind"] == "Deployment":
        (container,) = item["spec"]["template"]["spec"]["containers"]
        flags = [word.removeprefix("--").split("=", 1) for word in container["args"]]
        container["args"] = [f"--{name}" for name, *value in flags if not value]
        container["env"] += [
            {"name": f"RLHF_{name.upper().replace('-', '_')}", "value": value[0]}
            for name, *value in flags
            if value
        ]
    return item


def _operator(gang: str) -> Object:
    """A patch of the Deployment: which gang scheduler `auto` stands for."""
    container = {"name": "operator", "env": [{"name": "RLHF_GANG_ORDER", "value": gang}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }


def _kustomization(kind: str, content: Object) -> str:
    version = "v1alpha1" if kind == "Component" else "v1beta1"
    head = {"apiVersion": f"kustomize.config.k8s.io/{version}", "kind": kind}
    return _text([head | content])


def _text(objects: Iterable[Object]) -> str:
    return HEAD + yaml.safe_dump_all(objects, sort_keys=False)
