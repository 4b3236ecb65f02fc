"""The guide to installing: each command is run, in order; Helm begins without the resource."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.client import Client
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Script, Scripted
from cluster.nodes import FakeNodes
from fresh_cluster import CRDS, NAME, nothing_installed
from guide_commands import REPOSITORY, Page, Shell
from operator_process import OperatorProcess

Object = dict[str, Any]
PAGE = Page("docs/guides/install.md")
SPACES = ("rlhf-system", "alignment", "team-a")


def play(pod: Object) -> Script:
    """Replicas run; what Helm tests with ends at once."""
    is_test = "helm.sh/hook" in pod["metadata"].get("annotations", {})
    return Script() if is_test else Script(run_s=None)


class Reader:
    """Somebody at a terminal, at the root of a checkout."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self.has_read: list[str] = []

    def read(self, title: str) -> list[str]:
        """Runs all commands of a section; what each of them said."""
        self.has_read.append(title)
        return [self._shell.run(command) for command in PAGE.commands(title)]


@pytest.fixture
def shell(
    installed: ControlPlane, program: Callable[[str], Path], tmp_path: Path
) -> Iterator[Shell]:
    """With Helm, and a values file as the page has it."""
    shell = Shell(tmp_path, installed.kubeconfig, installed.binaries)
    for name in ("charts", "kustomize"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "values.yaml").write_text(PAGE.manifest("Helm"))
    homes = ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")
    shell.environment |= dict.fromkeys(homes, str(tmp_path / "helm"))
    shell.environment["PATH"] += f"{os.pathsep}{program('helm').parent}"
    yield shell
    shell.close()


@pytest.fixture
def reader(installed: ControlPlane, shell: Shell, fake_nodes: FakeNodes) -> Iterator[Reader]:
    node = fake_nodes.add({"nvidia.com/gpu": 8})
    with nothing_installed(installed.client), Kubelet(installed.kubeconfig, Scripted(play)):
        yield Reader(shell)
        leave(installed.client)
    fake_nodes.remove(node)


def leave(client: Client) -> None:
    """The namespaces of the page go, and with them all that it has put there."""
    for name in SPACES:
        client.delete("v1/namespaces", name)
        client.delete_all("v1/pods", name, grace=0)
    for name in SPACES:
        client.wait_for("v1/namespaces", name, lambda one: one is None)


def test_each_command_of_the_guide_does_what_it_says(
    reader: Reader, installed: ControlPlane, shell: Shell, tmp_path: Path
) -> None:
    installed_said, _ = reader.read("Helm")
    assert "STATUS: deployed" in installed_said

    # Nodes here pull no images: a replica's process runs beside its played pod.
    log, lease = tmp_path / "operator.log", ("--lease-namespace", "rlhf-system")
    operator = OperatorProcess(installed.kubeconfig, [], log, *lease)
    operator.start()
    try:
        installed.client.wait_for(
            "coordination.k8s.io/v1/leases", "rlhf-operator", bool, "rlhf-system"
        )
        tested, found, allowed, _ = reader.read("Check")
    finally:
        operator.end()
    assert "Phase:          Succeeded" in tested
    assert "NVIDIA" in found or "nvidia.com/gpu" in found
    assert "podgroups.scheduling.k8s.io" in allowed
    assert "podgroups.scheduling.volcano.sh" not in allowed

    *_, may = reader.read("Several teams")
    assert may.strip() == "yes"
    roles = installed.client.list("rbac.authorization.k8s.io/v1/roles", "team-a")
    assert [role["metadata"]["name"] for role in roles] == ["rlhf-operator"]

    upgraded, _, _ = reader.read("Upgrade")
    assert "REVISION: 3" in upgraded
    packed, images = reader.read("Without the Internet")
    assert "rlhf-operator-0.1.0.tgz" in packed
    assert set(images.split()) == {"image:", "registry.example/rlhf-operator:0.1.0"}
    _, kept = reader.read("Uninstall")
    assert NAME in kept
    other = "helm install other charts/rlhf-operator -n team-a --dry-run=server"
    with pytest.raises(AssertionError, match="invalid ownership metadata"):
        shell.run(other)
    shell.run(f"{other} --take-ownership")
    assert "`--take-ownership` (Helm 3.17 or newer)" in PAGE.section("Helm")

    _, _, allowed, *_ = reader.read("Kustomize")
    assert "workloads.kueue.x-k8s.io" in allowed
    assert "podgroups" not in allowed
    assert installed.client.find("v1/namespaces", "alignment") is None
    installed.client.get(CRDS, NAME)
    reader.read("Plain manifests")
    made = installed.client.get("apps/v1/deployments", "rlhf-operator", "alignment")
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/rlhf-operator:0.1.0"
    assert reader.has_read == [title for title in PAGE.titles if PAGE.commands(title)]


def test_argo_cd_is_given_a_chart_with_values_that_it_takes(
    program: Callable[[str], Path], shell: Shell
) -> None:
    text = (REPOSITORY / "examples/gitops/argocd/operator.yaml").read_text(encoding="utf-8")
    source = yaml.safe_load(text)["spec"]["source"]
    values = yaml.safe_dump(source["helm"]["valuesObject"])
    (shell.directory / "values.yaml").write_text(values)
    name, chart = source["helm"]["releaseName"], source["path"]
    made = shell.run(f"helm template {name} {chart} -f values.yaml")
    assert "--gang-order=native" in made


def test_links_of_the_guide_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGE.text):
        assert (REPOSITORY / "docs/guides" / target).exists(), target
