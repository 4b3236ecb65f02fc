"""The quickstart job on a real control plane, with the real trainer; then an edit, and faults.

The tests look at one story, which the fixtures tell: `calm` up to the first Ready, `disturbed` up
to the second. Beside it `rlhfctl run` trains the same job, with the same edit and one more.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import pytest
import short_job
from cluster_jobs import condition, stage, wait_until
from training_cluster import Object, TrainingCluster

NODES = {"sft": 1, "reward": 1, "ppo": 2, "dpo": 1}
KL_COEF = 0.05
"""What PPO is changed to; the quickstart job has another."""


class OnOneMachine(NamedTuple):
    """What `rlhfctl run` gives, trained on the second core while the cluster trains."""

    calm: Future[Object]
    again: Future[Object]
    edited: Future[Object]
    other_data: Future[Object]


@pytest.fixture(scope="module")
def on_one_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnOneMachine]:
    machine = short_job.OneMachine(tmp_path_factory.mktemp("one-machine"))
    with ThreadPoolExecutor(1) as pool:
        edit = f"--set=spec.stages.ppo.kl.coef={KL_COEF}"
        yield OnOneMachine(
            calm=pool.submit(machine.train),
            again=pool.submit(machine.train),
            edited=pool.submit(machine.train, edit),
            other_data=pool.submit(machine.train_without_the_first_row, edit),
        )
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def calm(cluster: TrainingCluster, on_one_machine: OnOneMachine) -> Object:
    """The job when all its stages have been trained."""
    cluster.offer_data()
    cluster.apply()
    return cluster.wait_ready()


class Disturbed(NamedTuple):
    """The job after an edit of PPO, and all that went wrong then."""

    job: Object
    log_after_kill: str
    log_after_eviction: str
    attempt_while_lost: int
    log_after_loss: str


@pytest.fixture(scope="module")
def disturbed(cluster: TrainingCluster, calm: Object) -> Disturbed:
    cluster.edit(f'{{"spec": {{"stages": {{"ppo": {{"kl": {{"coef": {KL_COEF}}}}}}}}}}}')
    cluster.wait_until_saved("ppo", attempt=2)
    cluster.kubelet.kill(cluster.pod("ppo", attempt=2, index=1))
    cluster.wait_until_saved("ppo", attempt=3)
    pod = cluster.pod("ppo", attempt=3, index=0)
    log_after_kill = cluster.kubelet.log(pod)
    cluster.kubelet.evict(pod)
    cluster.wait_until_saved("ppo", attempt=4)
    log_after_eviction = cluster.kubelet.log(cluster.pod("ppo", attempt=4, index=0))
    pod = cluster.pod("ppo", attempt=4, index=1)
    cluster.lose_machine(pod)
    lost = cluster.jobs.wait(knows_of_the_loss, short_job.NAME)
    cluster.give_up_machine(pod)
    cluster.wait_until_saved("ppo", attempt=5)
    log_after_loss = cluster.kubelet.log(cluster.pod("ppo", attempt=5, index=0))
    cluster.operator.kill()
    cluster.operator.start()
    return Disturbed(
        cluster.wait_ready(),
        log_after_kill,
        log_after_eviction,
        stage(lost, "ppo")["attempt"],
        log_after_loss,
    )


def knows_of_the_loss(job: Object | None) -> bool:
    return bool(stage(job, "ppo").get("reason") == "NodeLost")


def test_an_applied_manifest_is_trained_to_ready(cluster: TrainingCluster, calm: Object) -> None:
    status = calm["status"]
    assert status["phase"] == "Succeeded"
    assert condition(calm, "Stalled")[0] != "True"
    assert attempts(status) == dict.fromkeys(NODES, 1)
    assert cluster.kubectl("get", "rlhf", short_job.NAME, "--no-headers").split()[1] == "Succeeded"


def test_the_results_are_those_of_one_machine(calm: Object, on_one_machine: OnOneMachine) -> None:
    assert short_job.results(calm["status"]) == short_job.results(on_one_machine.calm.result())


def test_a_second_run_on_one_machine_trains_nothing(on_one_machine: OnOneMachine) -> None:
    again = on_one_machine.again.result()
    assert again["stages"] == on_one_machine.calm.result()["stages"]


def test_every_output_is_on_the_claim(cluster: TrainingCluster, calm: Object) -> None:
    for trained in calm["status"]["stages"].values():
        output = trained["checkpoint"]
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
    cluster: TrainingCluster, calm: Object, disturbed: Disturbed
) -> None:
    before, after = calm["status"]["stages"], disturbed.job["status"]["stages"]
    others = ("sft", "reward", "dpo")
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    assert after["ppo"]["hash"] != before["ppo"]["hash"]
    told = ["dpo", "ppo", "ppo", "prepare", "reward", "sft"]
    wait_until(lambda: len(cluster.ended_well()) >= len(told))  # events follow the status
    assert sorted(cluster.ended_well()) == told


def test_a_kill_an_eviction_a_lost_node_and_an_operator_s_death_change_no_result(
    disturbed: Disturbed, on_one_machine: OnOneMachine
) -> None:
    undisturbed = short_job.results(on_one_machine.edited.result())
    assert undisturbed["ppo"] != short_job.results(on_one_machine.calm.result())["ppo"]
    assert short_job.results(disturbed.job["status"]) == undisturbed


def test_each_attempt_goes_on_from_the_one_before(disturbed: Disturbed) -> None:
    assert "(attempt 2)" in going_on(disturbed.log_after_kill)
    assert "(attempt 3)" in going_on(disturbed.log_after_eviction)
    assert "(attempt 4)" in going_on(disturbed.log_after_loss)


def test_nothing_new_starts_while_a_lost_node_may_still_train(disturbed: Disturbed) -> None:
    assert disturbed.attempt_while_lost == 4


def going_on(log: str) -> str:
    """The line that says where a trainer goes on from."""
    return next((line for line in log.splitlines() if "going on from step" in line), log)


def test_a_fault_is_counted_and_a_disruption_is_free(disturbed: Disturbed) -> None:
    ppo = disturbed.job["status"]["stages"]["ppo"]
    assert (ppo["attempt"], ppo["faults"], ppo["disruptions"]) == (5, 1, 2)


def test_changes_on_one_machine_lead_to_just_the_stages_that_they_concern(
    on_one_machine: OnOneMachine,
) -> None:
    edited = on_one_machine.edited.result()
    assert attempts(edited) == {"sft": 1, "reward": 1, "ppo": 2, "dpo": 1}, "only PPO runs"
    other = on_one_machine.other_data.result()
    assert attempts(other) == {"sft": 2, "reward": 2, "ppo": 3, "dpo": 2}, "all after SFT run"


def attempts(status: Object) -> dict[str, int]:
    """The number of each stage's newest attempt."""
    return {name: stage["attempt"] for name, stage in status["stages"].items()}


def test_the_operator_needs_no_other_rights(cluster: TrainingCluster, disturbed: Disturbed) -> None:
    assert "403" not in cluster.operator.log()
