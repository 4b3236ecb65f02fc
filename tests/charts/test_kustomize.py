"""kustomize/: the chart's objects without Helm, and each gang scheduler as a component of them."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from chart import NAMESPACE, RELEASE, REPOSITORY, Helm, Rendered, values_of
from cluster.control_plane import ControlPlane
from differences import ANY, difference, unexpected
from operator_rights import OF_GANGS
from rlhf_operator.settings import Settings, parse

ROOT = REPOSITORY / "kustomize"
COMPONENTS = sorted(path.name for path in (ROOT / "components").iterdir())
EXAMPLE = ROOT / "overlays" / "example"
CRD, NAME = "CustomResourceDefinition", "rlhfjobs.rlhf.dev"
KEPT = {
    "argocd.argoproj.io/sync-options": "Prune=false,Delete=false",
    "kustomize.toolkit.fluxcd.io/prune": "disabled",
}
"""By these no tool takes the resource away, and with it every job."""
Build = Callable[[Path], Rendered]


@pytest.fixture(scope="module")
def build(control_plane: ControlPlane) -> Build:
    """What kubectl makes of a folder, without the resource: it is large."""

    @functools.cache
    def of(folder: Path) -> Rendered:
        made = yaml.load_all(control_plane.kubectl("kustomize", str(folder)), yaml.CSafeLoader)
        return Rendered([item for item in made if item["kind"] != CRD])

    return of


@pytest.fixture
def with_components(build: Build, tmp_path: Path) -> Callable[..., Rendered]:
    """The base with components, as an overlay has them."""

    def of(*names: str) -> Rendered:
        def relative(folder: str) -> str:
            return os.path.relpath(ROOT / folder, tmp_path)

        content = {
            "resources": [relative("base")],
            "components": [relative(f"components/{name}") for name in names],
        }
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(content))
        return build(tmp_path)

    return of


def settings(rendered: Rendered) -> Settings:
    """What the operator reads, with what a kubelet fills in."""
    variables = {item["name"]: item.get("value", "x") for item in rendered.container["env"]}
    meant = {k: v.replace("$(RLHF_LEASE_NAMESPACE)", NAMESPACE) for k, v in variables.items()}
    return parse(rendered.args, meant)


def test_every_gang_scheduler_that_needs_rights_has_a_component() -> None:
    assert sorted(name for name, rules in OF_GANGS.items() if rules) == COMPONENTS


def test_the_base_is_the_chart_with_no_gang_scheduler(build: Build, helm: Helm) -> None:
    chart = helm.render(values_of("jobDefaults.gangSchedulers", ["none"]))
    base = build(ROOT / "base")
    assert settings(base) == settings(chart)
    expected = {
        "*labels.helm.sh/chart": None,
        "*labels.app.kubernetes.io/managed-by": None,
        "Namespace rlhf-system *": ANY,
        "Pod rlhf-operator-test *": None,
        "Deployment rlhf-operator spec.template.spec.containers.operator.args[*]": None,
        "Deployment rlhf-operator spec.template.spec.containers.operator.env.RLHF_*": ANY,
    }
    assert unexpected(difference(chart.objects, base.objects), expected) == []


def test_the_base_brings_the_resource_along(installed: ControlPlane) -> None:
    """As it comes back from the API server: Kustomize writes some numbers in another form."""
    made = installed.kubectl("kustomize", str(ROOT / "base"))
    (crd,) = (text for text in made.split("\n---\n") if f"\nkind: {CRD}\n" in text)
    words = ("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-o", "json")
    taken = json.loads(installed.kubectl(*words, "-f", "-", input=crd))
    given = installed.client.get("apiextensions.k8s.io/v1/customresourcedefinitions", NAME)
    assert taken["spec"] == given["spec"]
    assert taken["metadata"]["annotations"].items() >= KEPT.items()


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_sets_the_default_and_gives_its_rights_and_nothing_else(
    name: str, build: Build, with_components: Callable[..., Rendered]
) -> None:
    made = with_components(name)
    expected = {
        "Deployment rlhf-operator *.env.RLHF_GANG_ORDER.value": name,
        f"ClusterRole rlhf-operator-{name} *": ANY,
        f"ClusterRoleBinding rlhf-operator-{name} *": ANY,
    }
    found = difference(build(ROOT / "base").objects, made.objects)
    assert unexpected(found, expected) == []
    assert settings(made).gang_order == (name,)
    assert made.one("ClusterRole", f"rlhf-operator-{name}")["rules"] == OF_GANGS[name]
    binding = made.one("ClusterRoleBinding", f"rlhf-operator-{name}")
    assert binding["roleRef"]["name"] == f"rlhf-operator-{name}"
    (subject,) = binding["subjects"]
    assert (subject["name"], subject["namespace"]) == (RELEASE, NAMESPACE)


def test_of_several_components_each_gives_rights_and_the_last_the_default(
    with_components: Callable[..., Rendered],
) -> None:
    made = with_components("kueue", "native")
    assert settings(made).gang_order == ("native",)
    roles = {role["metadata"]["name"] for role in made.of("ClusterRole")}
    assert {"rlhf-operator-kueue", "rlhf-operator-native"} <= roles


def test_the_example_gives_jobs_what_its_cluster_has(build: Build) -> None:
    made = build(EXAMPLE)
    defaults = settings(made).defaults
    assert (defaults.image, defaults.queue) == ("registry.example/rlhf-trainer:0.1.0", "research")
    assert made.container["image"] == "registry.example/rlhf-operator:0.1.0"
    for item in [*made.of("RoleBinding"), *made.of("ClusterRoleBinding")]:
        assert {subject["namespace"] for subject in item["subjects"]} == {"alignment"}


@pytest.mark.parametrize("folder", [ROOT / "base", EXAMPLE], ids=lambda path: path.name)
def test_the_api_server_takes_it_all(folder: Path, build: Build, installed: ControlPlane) -> None:
    """Namespaces are made, as a dry run makes none; the pods are those of the chart."""
    made = build(folder)
    (space,) = made.of("Namespace")
    installed.client.create(space)
    words = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
    said = installed.kubectl(*words, input=yaml.safe_dump_all(made.objects))
    installed.client.delete("v1/namespaces", space["metadata"]["name"])
    installed.client.wait_for("v1/namespaces", space["metadata"]["name"], lambda one: one is None)
    assert len(said.splitlines()) == len(made.objects)
