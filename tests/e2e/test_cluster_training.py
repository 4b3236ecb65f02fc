"""The quickstart job on a real control plane, with the real trainer; then an edit, and faults.

The tests look at one story, which the fixtures tell: `calm` up to the first Ready, `disturbed` up
to the second.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import short_job
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Processes
from cluster.nodes import FakeNodes
from cluster.programs import free_ports
from cluster_jobs import Jobs, condition
from operator_process import OperatorProcess
from operator_rights import allow_reviews, limited
from training_cluster import Object, TrainingCluster

ONCE = {"sft": 1, "reward": 1, "ppo": 1, "dpo": 1}
NODES = {"sft": 1, "reward": 1, "ppo": 2, "dpo": 1}


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory: pytest.TempPathFactory) -> short_job.OneMachine:
    return short_job.OneMachine(tmp_path_factory.mktemp("one-machine"))


@pytest.fixture(scope="module")
def local_digests(one_machine: short_job.OneMachine) -> dict[str, str]:
    return one_machine.train()


@pytest.fixture(scope="module")
def cluster(
    installed: ControlPlane,
    fake_nodes: FakeNodes,
    module_namespace: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TrainingCluster]:
    directory = tmp_path_factory.mktemp("cluster")
    nodes = [fake_nodes.add({short_job.DEVICE: 2}) for _ in range(2)]
    kubeconfig = limited(installed, module_namespace)
    allow_reviews(installed, module_namespace)
    (port,) = free_ports(1)
    flags = (
        *("--lease-namespace", module_namespace),
        *("--progress-port", str(port), "--progress-url", f"http://127.0.0.1:{port}"),
    )
    log = directory / "operator.log"
    operator = OperatorProcess(kubeconfig, [module_namespace], log, *flags)
    pods = Processes(directory / "pods", short_job.ON_THE_CPU)
    operator.start()
    try:
        with Kubelet(installed.kubeconfig, pods, nodes) as kubelet:
            jobs = Jobs(installed.client, module_namespace)
            yield TrainingCluster(installed, jobs, operator, kubelet)
    finally:
        operator.end()
        print(operator.log()[-8000:])
        for node in nodes:
            fake_nodes.remove(node)


@pytest.fixture(scope="module")
def calm(cluster: TrainingCluster) -> Object:
    """The job when all its stages have been trained."""
    cluster.offer_data()
    cluster.apply()
    return cluster.wait_ready()


@pytest.fixture(scope="module")
def disturbed(cluster: TrainingCluster, calm: Object) -> Object:
    """The job after an edit of PPO, a worker that was killed, and a pod that was evicted."""
    cluster.edit('{"spec": {"stages": {"ppo": {"kl": {"coef": 0.05}}}}}')
    cluster.wait_for_step("ppo", attempt=2)
    cluster.kubelet.kill(cluster.pod("ppo", attempt=2, index=1), rank=1)
    cluster.wait_for_step("ppo", attempt=3)
    cluster.kubelet.evict(cluster.pod("ppo", attempt=3, index=0))
    return cluster.wait_ready()


def test_an_applied_manifest_is_trained_to_ready(cluster: TrainingCluster, calm: Object) -> None:
    status = calm["status"]
    assert status["phase"] == "Succeeded"
    assert condition(calm, "Stalled")[0] != "True"
    assert {name: stage["attempt"] for name, stage in status["stages"].items()} == ONCE
    assert cluster.kubectl("get", "rlhf", short_job.NAME, "--no-headers").split()[1] == "Succeeded"


def test_the_results_are_those_of_one_machine(calm: Object, local_digests: dict[str, str]) -> None:
    assert short_job.digests(calm["status"]) == local_digests


def test_every_output_is_on_the_claim(cluster: TrainingCluster, calm: Object) -> None:
    for stage in calm["status"]["stages"].values():
        output = stage["checkpoint"]
        assert short_job.digest_of(cluster.checkpoints / output["uri"]) == output["digest"]


def test_each_stage_was_bound_as_a_gang(cluster: TrainingCluster, calm: Object) -> None:
    groups = {
        group["metadata"]["name"]: group["spec"]["schedulingPolicy"]["gang"]["minCount"]
        for group in cluster.jobs.children("scheduling.k8s.io/v1alpha2/podgroups")
        if condition(group, "PodGroupScheduled")[0] == "True"
    }
    assert groups == {f"{short_job.NAME}-{name}-1": nodes for name, nodes in NODES.items()}
    pods = [pod for name in NODES for pod in cluster.jobs.pods(name)]
    assert len(pods) == sum(NODES.values())
    for pod in pods:
        assert pod["spec"]["schedulingGroup"]["podGroupName"] in groups
        assert pod["spec"]["containers"][0]["resources"]["limits"] == {short_job.DEVICE: "1"}


def test_trainers_report_with_the_tokens_of_their_pods(
    cluster: TrainingCluster, calm: Object
) -> None:
    assert cluster.metric("rlhf_operator_progress_reports_total", code="200") > 0


def test_only_ppo_runs_again_after_its_edit(
    cluster: TrainingCluster, calm: Object, disturbed: Object
) -> None:
    before, after = calm["status"]["stages"], disturbed["status"]["stages"]
    others = ("sft", "reward", "dpo")
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    assert after["ppo"]["hash"] != before["ppo"]["hash"]
    assert sorted(cluster.ended_well()) == ["dpo", "ppo", "ppo", "prepare", "reward", "sft"]


def test_a_killed_worker_and_an_eviction_change_no_result(
    disturbed: Object, one_machine: short_job.OneMachine, local_digests: dict[str, str]
) -> None:
    undisturbed = one_machine.train("--set", "spec.stages.ppo.kl.coef=0.05")
    assert undisturbed["ppo"] != local_digests["ppo"]
    assert short_job.digests(disturbed["status"]) == undisturbed


def test_a_fault_is_counted_and_a_disruption_is_free(disturbed: Object) -> None:
    ppo = disturbed["status"]["stages"]["ppo"]
    assert (ppo["attempt"], ppo["faults"], ppo["disruptions"]) == (4, 1, 1)


def test_the_operator_needs_no_other_rights(cluster: TrainingCluster, disturbed: Object) -> None:
    assert "403" not in cluster.operator.log()
