"""Whole pipelines on a real control plane; pods are played from a script."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from cluster.client import PATIENCE
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Script, succeed, trained
from cluster.kubelet.script import Play, index_of
from cluster.nodes import FakeNode
from cluster_jobs import JOBS, Jobs, Object, condition, manifest, stage, wait_until
from operator_process import OperatorProcess

Run = Callable[..., OperatorProcess]


def until_told(*stages: str, attempt: int | None = None) -> Play:
    """Pods of these stages run until they are told to end; the others succeed at once."""

    def chosen(pod: Object) -> Script:
        labels = pod["metadata"]["labels"]
        of_attempt = attempt in (None, int(labels["rlhf.dev/attempt"]))
        if labels["rlhf.dev/stage"] in stages and of_attempt:
            return Script(run_s=None)
        return succeed(pod)

    return chosen


def ends(of: str, code: int, **script: Any) -> Play:
    """Pod 0 of the first attempt of a stage ends with this code; all others succeed."""

    def chosen(pod: Object) -> Script:
        labels = pod["metadata"]["labels"]
        if (labels["rlhf.dev/stage"], labels["rlhf.dev/attempt"]) == (of, "1"):
            if index_of(pod) == 0:
                return Script(run_s=0.2, exit_code=code, **script)
            return Script(run_s=None)
        return succeed(pod)

    return chosen


def test_an_applied_job_runs_to_ready(
    installed: ControlPlane, jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    play(succeed)
    run_operator()
    installed.kubectl("apply", "-f", "-", input=json.dumps(manifest(jobs.namespace)))
    job = jobs.wait_ready()
    assert job["status"]["phase"] == "Succeeded"
    assert jobs.attempts() == {"sft": 1, "reward": 1, "ppo": 1, "dpo": 1}
    assert job["status"]["observedGeneration"] == 1
    assert not job["metadata"].get("finalizers")
    assert "kopf" not in json.dumps(job["metadata"].get("annotations") or {})
    wait_until(lambda: "Succeeded" in reasons(jobs))  # events follow the status
    assert reasons(jobs).count("StageSucceeded") == 5
    assert reasons(jobs).count("Succeeded") == 1


def reasons(jobs: Jobs) -> list[str]:
    return [reason for reason, _ in jobs.events()]


def test_nothing_is_written_once_all_is_done(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    play(succeed)
    run_operator()
    jobs.create(manifest(jobs.namespace, stages="sft"))
    version = jobs.wait_ready()["metadata"]["resourceVersion"]
    wait_until(lambda: all(map(is_left_alone, jobs.children("batch/v1/jobs"))))
    wait_until(lambda: not any(pod["metadata"].get("finalizers") for pod in pods_of(jobs)))
    before = versions(jobs)
    time.sleep(3)
    assert jobs.get()["metadata"]["resourceVersion"] == version
    assert versions(jobs) == before


def is_left_alone(job: Object) -> bool:
    """The Job controller writes it no more."""
    found = {item["type"] for item in job["status"].get("conditions", [])}
    return "Complete" in found and not any(
        job["status"].get("uncountedTerminatedPods", {}).values()
    )


def pods_of(jobs: Jobs) -> list[Object]:
    return jobs.children("v1/pods")


def versions(jobs: Jobs) -> dict[str, str]:
    return {c["metadata"]["uid"]: c["metadata"]["resourceVersion"] for c in children_of(jobs)}


def children_of(jobs: Jobs) -> list[Object]:
    kinds = ("batch/v1/jobs", "v1/pods", "v1/configmaps", "v1/services")
    return [item for kind in kinds for item in jobs.children(kind)]


def wait_until_gone(jobs: Jobs) -> None:
    """The garbage collector takes all that the job owns; a claim goes last, once no pod uses it.

    It looks for new kinds every 30 s: where the CRD is younger, it learns late of the deletion.
    """
    deadline = time.monotonic() + PATIENCE
    while left := [*children_of(jobs), *filter(is_owned, jobs.children(CLAIMS))]:
        assert time.monotonic() < deadline, [
            {name: item["metadata"].get(name) for name in ("name", *WHY_IT_STAYS)} for item in left
        ]
        time.sleep(0.1)


CLAIMS = "v1/persistentvolumeclaims"
WHY_IT_STAYS = ("deletionTimestamp", "finalizers", "ownerReferences")


def is_owned(item: Object) -> bool:
    return bool(item["metadata"].get("ownerReferences"))


def test_a_worker_that_fails_restarts_its_gang_as_a_whole(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    play(ends("sft", 75, message="peer lost"))
    run_operator()
    made = manifest(jobs.namespace, stages="sft")
    made["spec"]["stages"]["sft"]["retry"] = {"backoffSeconds": 1}
    jobs.create(made)
    status = jobs.wait_ready()["status"]["stages"]["sft"]
    assert (status["attempt"], status["faults"]) == (2, 1)
    assert any("peer lost" in note for reason, note in jobs.events() if reason == "AttemptFault")


def test_a_drained_node_is_named_and_its_gang_goes_on_elsewhere(
    jobs: Jobs,
    run_operator: Run,
    play: Callable[..., Kubelet],
    make_node: Callable[..., FakeNode],
) -> None:
    """The evicted pod is gone before its peer, which takes longer to save."""

    def chosen(pod: Object) -> Script:
        if pod["metadata"]["labels"]["rlhf.dev/attempt"] == "2" or is_prepare(pod):
            return succeed(pod)
        return Script(run_s=None, term_s=1.0 * index_of(pod))

    make_node({"nvidia.com/gpu": 8})
    play(chosen)
    run_operator()
    made = manifest(jobs.namespace, nodes=3, stages="sft")
    made["spec"]["resources"]["gpusPerNode"] = 8
    made["spec"]["stages"]["sft"]["retry"] = {"maxFaults": 0}
    jobs.create(made)
    jobs.wait_running("sft")
    first = next(pod for pod in jobs.pods("sft") if index_of(pod) == 0)
    drained = FakeNode(jobs.client, first["spec"]["nodeName"])
    drained.drain()
    make_node({"nvidia.com/gpu": 8})
    sft = jobs.wait_ready()["status"]["stages"]["sft"]
    assert (sft["attempt"], sft["disruptions"], sft["faults"]) == (2, 1, 0)
    (said,) = [note for reason, note in jobs.events() if reason == "AttemptDisruption"]
    who = f"ranks 0-7 on {drained.name} ({first['metadata']['name']})"
    assert f"{who}: exit 143, EvictionByEvictionAPI." in said


def is_prepare(pod: Object) -> bool:
    return bool(pod["metadata"]["labels"]["rlhf.dev/stage"] == "prepare")


def test_bad_configuration_is_never_tried_again(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    play(ends("sft", 64))
    run_operator()
    jobs.create(manifest(jobs.namespace, stages="sft dpo"))
    job = jobs.wait(lambda job: condition(job, "Stalled")[0] == "True")
    assert condition(job, "Stalled") == ("True", "ConfigurationError")
    assert jobs.attempts()["sft"] == 1
    assert jobs.pods("dpo") == []


def test_a_person_has_a_failed_stage_tried_again(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    play(ends("sft", 64))
    run_operator()
    jobs.create(manifest(jobs.namespace, stages="sft"))
    jobs.wait(lambda job: condition(job, "Stalled")[0] == "True")
    jobs.patch({"metadata": {"annotations": {"rlhf.dev/retry-sft": "1"}}})
    sft = jobs.wait_ready()["status"]["stages"]["sft"]
    assert (sft["attempt"], sft["restarts"]) == (2, {"Final": 1})


@pytest.mark.parametrize("of", ["prepare", "sft", "dpo"])
def test_an_operator_that_is_killed_in_mid_stage_goes_on(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet], of: str
) -> None:
    play(lambda pod: succeed(pod)._replace(run_s=2.0))
    operator = run_operator("--no-leader-election")
    jobs.create(manifest(jobs.namespace, stages="sft dpo"))
    deadline = time.monotonic() + PATIENCE
    while not any(p["status"]["phase"] == "Running" for p in jobs.pods(of)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    operator.kill()
    operator.start()
    jobs.wait_ready()
    assert jobs.attempts() == {"sft": 1, "dpo": 1}


def test_a_job_that_is_deleted_leaves_nothing(
    installed: ControlPlane, jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    play(until_told("sft"))
    run_operator()
    made = manifest(jobs.namespace, stages="sft")
    made["spec"]["checkpoints"] = {"claim": {"retain": False}}
    jobs.create(made)
    jobs.wait_running("sft")
    installed.kubectl("delete", "rlhfjob", "tiny", "-n", jobs.namespace, f"--timeout={PATIENCE:g}s")
    wait_until_gone(jobs)


def test_an_edit_in_mid_stage_replaces_the_attempt_once_its_pods_are_gone(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    slow = Script(run_s=None, term_s=2.0)

    def chosen(pod: Object) -> Script:
        labels = pod["metadata"]["labels"]
        is_first = (labels["rlhf.dev/stage"], labels["rlhf.dev/attempt"]) == ("sft", "1")
        return slow if is_first else succeed(pod)

    play(chosen)
    run_operator()
    jobs.create(manifest(jobs.namespace, stages="sft"))
    jobs.wait_running("sft")
    jobs.patch({"spec": {"stages": {"sft": {"epochs": 3}}}})
    jobs.wait(lambda job: stage(job, "sft").get("attempt") == 2 or bool(overlapping(jobs)))
    assert overlapping(jobs) == []
    jobs.wait_ready()
    assert jobs.attempts() == {"sft": 2}


def overlapping(jobs: Jobs) -> list[str]:
    """Attempts whose pods live while those of another attempt do."""
    live = [p for p in jobs.pods("sft") if p["status"]["phase"] in ("Pending", "Running")]
    numbers = {p["metadata"]["labels"]["rlhf.dev/attempt"] for p in live}
    return sorted(numbers) if len(numbers) > 1 else []


def test_only_what_changed_runs_again(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    play(succeed)
    run_operator()
    jobs.create(manifest(jobs.namespace))
    jobs.wait_ready()
    generation = jobs.patch({"spec": {"stages": {"ppo": {"kl": {"coef": 0.5}}}}})["metadata"]
    jobs.wait(
        lambda job: (
            (job or {})["status"]["observedGeneration"] == generation["generation"]
            and condition(job, "Ready")[0] == "True"
        )
    )
    assert jobs.attempts() == {"sft": 1, "reward": 1, "ppo": 2, "dpo": 1}


def test_a_name_that_is_taken_is_a_condition_and_nobody_s_loss(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    taken = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "tiny-prepare-1", "namespace": jobs.namespace},
        "data": {"mine": "yes"},
    }
    jobs.client.create(taken)
    play(succeed)
    run_operator()
    jobs.create(manifest(jobs.namespace, stages="sft"))
    jobs.create(manifest(jobs.namespace, "other", stages="sft"))
    job = jobs.wait(lambda job: condition(job, "Stalled")[0] == "True")
    assert condition(job, "Stalled") == ("True", "NameTaken")
    jobs.wait_ready("other")
    assert jobs.client.get("v1/configmaps", "tiny-prepare-1", jobs.namespace)["data"] == {
        "mine": "yes"
    }


def test_a_job_of_the_same_name_waits_for_the_old_one_s_pods(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    def chosen(pod: Object) -> Script:
        return Script(run_s=None, term_s=2.0) if pod["metadata"]["uid"] in old else succeed(pod)

    old: set[str] = set()

    def first(pod: Object) -> Script:
        if not old:
            old.add(pod["metadata"]["uid"])
        return chosen(pod)

    play(first)
    run_operator()
    jobs.create(manifest(jobs.namespace, stages="sft"))
    wait_until(lambda: any(p["status"]["phase"] == "Running" for p in jobs.pods("prepare")))
    jobs.client.delete(JOBS, "tiny", jobs.namespace)
    jobs.create(manifest(jobs.namespace, stages="sft"))
    jobs.wait_ready()


def test_a_job_made_again_over_the_pods_of_one_that_is_done_trains_anew(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    """Its pods are gone only some time after it: how they ended says nothing of the new one."""
    trained: set[str] = set()

    def noted(pod: Object) -> Script:
        trained.add(pod["metadata"]["uid"])
        return succeed(pod)

    play(noted)
    run_operator()
    jobs.create(manifest(jobs.namespace, stages="sft"))
    jobs.wait_ready()
    before = len(trained)
    for times in (2, 3):
        jobs.client.delete(JOBS, "tiny", jobs.namespace)
        jobs.create(manifest(jobs.namespace, stages="sft"))
        jobs.wait_ready()
        assert len(trained) == times * before


def test_the_api_server_may_be_away_for_a_while(
    installed: ControlPlane,
    jobs: Jobs,
    run_operator: Run,
    play: Callable[..., Kubelet],
    gpus: list[FakeNode],
) -> None:
    play(until_told("sft", attempt=1))
    operator = run_operator()
    jobs.create(manifest(jobs.namespace, stages="sft"))
    jobs.wait_running("sft")
    installed.stop("kube-apiserver", grace=0)
    time.sleep(15)  # longer than a lease
    installed.start("kube-apiserver")
    for node in gpus:
        node.recover()
    assert operator.is_running
    jobs.patch({"spec": {"stages": {"sft": {"epochs": 3}}}})
    jobs.wait_ready()
    assert jobs.attempts() == {"sft": 2}


def test_a_second_replica_takes_over_from_one_that_was_killed(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    play(succeed)
    first, second = one_that_leads_and_one_that_waits(run_operator)
    first.kill()
    jobs.create(manifest(jobs.namespace, stages="sft"))
    jobs.wait_ready()
    assert "This process leads" in second.log()


def one_that_leads_and_one_that_waits(run_operator: Run) -> tuple[OperatorProcess, OperatorProcess]:
    first = run_operator("--identity", "first")
    wait_until(lambda: "This process leads" in first.log())
    second = run_operator("--identity", "second")
    wait_until(lambda: "this replica waits for the lease" in second.log())
    return first, second


def test_sigterm_hands_over_at_once(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    play(succeed)
    first, second = one_that_leads_and_one_that_waits(run_operator)
    assert first.terminate() == 0
    assert holder(jobs) != "first"  # nobody waits until its term has run out
    wait_until(lambda: "This process leads" in second.log())
    assert holder(jobs) == "second"


def holder(jobs: Jobs) -> str:
    """Who leads, by the name that it was given; nobody by an empty one."""
    lease = jobs.client.get("coordination.k8s.io/v1/leases", "rlhf-operator", jobs.namespace)
    return str(lease["spec"].get("holderIdentity") or "").partition("_")[0]


def test_a_leader_that_was_stopped_past_its_lease_writes_nothing(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    play(succeed)
    first, second = one_that_leads_and_one_that_waits(run_operator)
    first.signal(signal.SIGSTOP)
    wait_until(lambda: "This process leads" in second.log())
    jobs.create(manifest(jobs.namespace, stages="sft"))
    first.signal(signal.SIGCONT)
    jobs.wait_ready()
    assert jobs.attempts() == {"sft": 1}
    instances = {
        e["reportingInstance"]
        for e in jobs.client.list("events.k8s.io/v1/events", jobs.namespace)
        if e.get("reportingController") == "rlhf.dev/operator"
    }
    assert instances == {"second"}


def test_metrics_of_a_gate_come_from_the_termination_message(
    jobs: Jobs, run_operator: Run, play: Callable[..., Kubelet]
) -> None:
    def chosen(pod: Object) -> Script:
        return Script(message=trained(pod, **{"eval/accuracy": 0.4}))

    play(chosen)
    run_operator()
    made = manifest(jobs.namespace, stages="reward ppo")
    made["spec"]["stages"]["reward"]["gate"] = {"metric": "eval/accuracy", "min": 0.6}
    jobs.create(made)
    job = jobs.wait(lambda job: condition(job, "Stalled")[0] == "True")
    assert condition(job, "Stalled") == ("True", "GateNotMet")
    assert jobs.pods("ppo") == []
