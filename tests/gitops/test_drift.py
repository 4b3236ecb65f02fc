"""A manifest that is applied again changes nothing, whoever applies it; a job for each way."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Script, Scripted, trained
from cluster.nodes import FakeNodes
from cluster_jobs import Jobs, condition, manifest
from deployers import WAYS, Deployer
from judging import judge
from operator_process import OperatorProcess

Object = dict[str, Any]
MARKS = {
    "labels": {
        "app.kubernetes.io/instance": "models",
        "kustomize.toolkit.fluxcd.io/name": "models",
    },
    "annotations": {"argocd.argoproj.io/tracking-id": "models:rlhf.dev/RLHFJob:research/tiny"},
}
"""What GitOps tools know their objects by."""


def in_git(way: str) -> Object:
    """The manifest as it is kept in Git, with the marks of tools that would have added them."""
    made = manifest("", f"by-{way}", nodes=1, stages="sft reward ppo")
    made["metadata"] = {"name": made["metadata"]["name"], **copy.deepcopy(MARKS)}
    made["spec"]["stages"]["reward"]["gate"] = {"approval": True}
    return made


def play(pod: Object) -> Script:
    return Script(message=trained(pod, **{"eval/accuracy": 0.73}))


class Deployed:
    """What each way has brought to the cluster, in the three states that were looked at."""

    def __init__(self, deployer: Deployer, jobs: Jobs) -> None:
        self.deployer, self.jobs = deployer, jobs
        self.verdicts: dict[str, Any] = {}

    def apply(self, way: str, manifest: Object) -> None:
        WAYS[way](self.deployer, manifest)

    def get(self, way: str) -> Object:
        return self.jobs.get(f"by-{way}")

    def look(self, moment: str) -> None:
        """Has kstatus and Argo CD judge all jobs."""
        seen = judge({way: self.get(way) for way in WAYS}).items()
        self.verdicts[moment] = {(verdict.kstatus, verdict.argo) for _, verdict in seen}

    def approve(self, way: str) -> None:
        """As Argo CD does: its script changes the object, and a merge patch sends what differs."""
        changed = judge({way: self.get(way)}, "approve")[way].scripts["approve"]
        body = {"metadata": {"annotations": changed["metadata"]["annotations"]}}
        self.jobs.patch(body, f"by-{way}")


@pytest.fixture(scope="module")
def deployed(
    installed: ControlPlane,
    module_namespace: str,
    fake_nodes: FakeNodes,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployed]:
    """Each job has been deployed before any operator was there, approved, and is done."""
    folder = tmp_path_factory.mktemp("deployers")
    jobs = Jobs(installed.client, module_namespace)
    found = Deployed(Deployer(installed, module_namespace, folder), jobs)
    lease = ("--lease-namespace", module_namespace)
    operator = OperatorProcess(installed.kubeconfig, [module_namespace], folder / "log", *lease)
    node = fake_nodes.add({"nvidia.com/gpu": 16})
    for way in WAYS:
        found.apply(way, in_git(way))
    found.look("fresh")
    operator.start()
    try:
        with Kubelet(installed.kubeconfig, Scripted(play)):
            for way in WAYS:
                jobs.wait(lambda job: condition(job, "ApprovalNeeded")[0] == "True", f"by-{way}")
            found.look("approval needed")
            for way in WAYS:
                found.approve(way)
            for way in WAYS:
                jobs.wait_ready(f"by-{way}")
            found.look("done")
            yield found
    finally:
        operator.end()
        fake_nodes.remove(node)
        print(operator.log()[-4000:])


@pytest.mark.parametrize(
    ("moment", "read"),
    [
        ("fresh", ("InProgress", "Progressing")),
        ("approval needed", ("InProgress", "Progressing")),
        ("done", ("Current", "Healthy")),
    ],
)
def test_tools_read_the_objects_of_the_api_server(
    moment: str, read: tuple[str, str], deployed: Deployed
) -> None:
    assert deployed.verdicts[moment] == {read}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_manifest_again_writes_nothing(way: str, deployed: Deployed) -> None:
    before = deployed.get(way)
    deployed.apply(way, in_git(way))
    assert deployed.get(way)["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


@pytest.mark.parametrize("flags", [(), ("--server-side", "--field-manager=gitops")])
def test_there_is_no_difference_to_show(flags: tuple[str, ...], deployed: Deployed) -> None:
    way = "server-side" if flags else "client-side"
    assert deployed.deployer.difference(in_git(way), *flags) == ""


@pytest.mark.parametrize("way", WAYS)
def test_defaults_that_are_filled_in_change_nothing(way: str, deployed: Deployed) -> None:
    before = deployed.get(way)
    deployed.apply(way, in_git(way) | {"spec": before["spec"]})
    assert_unchanged(before, deployed.get(way))


def test_what_was_exported_can_be_applied(deployed: Deployed) -> None:
    before = deployed.get("client-side")
    deployed.apply("client-side", before)
    assert_unchanged(before, deployed.get("client-side"))


def assert_unchanged(before: Object, after: Object) -> None:
    """No new generation, and so no new attempt; the operator has written nothing."""
    assert after["spec"] == before["spec"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"] == 1
    assert after["status"] == before["status"]


def test_the_operator_owns_the_status_alone(deployed: Deployed) -> None:
    for way in WAYS:
        managers = deployed.get(way)["metadata"]["managedFields"]
        (own,) = [item for item in managers if item["manager"] == "rlhf-operator"]
        assert own["subresource"] == "status"
        assert set(own["fieldsV1"]) == {"f:status"}


@pytest.mark.parametrize("way", WAYS)
def test_another_tool_takes_over_without_a_conflict(way: str, deployed: Deployed) -> None:
    deployed.deployer.server_side(in_git(way))
    assert deployed.get(way)["metadata"]["generation"] == 1


def test_children_carry_no_mark_by_which_a_tool_would_prune_them(deployed: Deployed) -> None:
    names = {name for marks in MARKS.values() for name in marks}
    plurals = ("batch/v1/jobs", "v1/pods", "v1/services", "v1/configmaps")
    children = [child for plural in plurals for child in deployed.jobs.children(plural)]
    assert len(children) > 12
    for child in children:
        meta = child["metadata"]
        assert not names & {*meta.get("labels", {}), *meta.get("annotations", {})}
        assert meta["annotations"]["argocd.argoproj.io/ignore-resource-updates"] == "true"


@pytest.mark.parametrize("way", WAYS)
def test_a_field_that_is_dropped_goes_back_to_its_default(way: str, deployed: Deployed) -> None:
    default = deployed.get(way)["spec"]["stages"]["ppo"]["kl"]
    changed = in_git(way)
    changed["spec"]["stages"]["ppo"]["kl"] = {"coef": 0.05}
    changed["spec"]["ttlSecondsAfterFinished"] = 3600
    deployed.apply(way, changed)
    spec = deployed.get(way)["spec"]
    assert (spec["stages"]["ppo"]["kl"]["coef"], spec["ttlSecondsAfterFinished"]) == (0.05, 3600)
    deployed.apply(way, in_git(way))
    spec = deployed.get(way)["spec"]
    assert spec["stages"]["ppo"]["kl"] == default
    assert "ttlSecondsAfterFinished" not in spec


def part(spec: Object) -> Object:
    """What a second manager knows of a job: a few fields."""
    whole = in_git("server-side")
    return {**whole, "metadata": {"name": whole["metadata"]["name"]}, "spec": spec}


def test_two_managers_of_different_fields_do_not_conflict(deployed: Deployed) -> None:
    def kept_for() -> int | None:
        found: int | None = deployed.get("server-side")["spec"].get("ttlSecondsAfterFinished")
        return found

    deployed.deployer.server_side(part({"ttlSecondsAfterFinished": 7200}), "platform")
    deployed.deployer.server_side(in_git("server-side"))
    assert kept_for() == 7200
    deployed.deployer.server_side(part({}), "platform")
    assert kept_for() is None
    assert deployed.get("server-side")["spec"]["stages"]["ppo"]["kl"]["coef"] == 0.02


def test_a_second_manager_of_the_same_field_is_told_who_has_it(deployed: Deployed) -> None:
    other = part({"stages": {"reward": {"gate": {"approval": False}}}})
    with pytest.raises(RuntimeError, match=r'conflict with "gitops".*\n?.*reward\.gate\.approval'):
        deployed.deployer.server_side(other, "platform")
    assert deployed.get("server-side")["spec"]["stages"]["reward"]["gate"]["approval"] is True
