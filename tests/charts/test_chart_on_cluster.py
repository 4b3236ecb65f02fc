"""The chart on a real API server: installed, used with no other rights, upgraded, removed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import CHART, NAMESPACE, RELEASE, Helm
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Script, Scripted, trained
from cluster.nodes import FakeNode
from cluster_jobs import Jobs, manifest, stage, wait_until
from fresh_cluster import CRDS, NAME
from played import PlayedDeployment
from releases import RESTRICTED, Release, Right
from reports import path_of, report, token_of

CHILDREN = ("batch/v1/jobs", "v1/configmaps", "v1/services", "scheduling.k8s.io/v1alpha2/podgroups")
RARE = {
    Right("get", "rlhf.dev", "rlhfjobs"),  # after a status write that met a newer job
    Right("list", "events.k8s.io", "events"),  # where pods of a Job are refused, or come late
}
"""What the operator does in this story on a slow machine alone."""
UNUSED = {
    Right(verb, "scheduling.k8s.io", "workloads")  # on Kubernetes 1.35
    for verb in ("get", "list", "watch", "create", "delete", "patch")
}
"""What the operator did not do in this story, and why it may all the same."""


class Trainers:
    """PPO trains until it is let go, other stages end at once, and so does what Helm tests with."""

    def __init__(self) -> None:
        self.ppo_goes_on = True

    def play(self, pod: dict[str, Any]) -> Script:
        stage = pod["metadata"]["labels"].get("rlhf.dev/stage")
        if stage is None:  # one of the chart's own
            is_test = "helm.sh/hook" in pod["metadata"].get("annotations", {})
            return Script() if is_test else Script(run_s=None)
        if stage == "ppo" and self.ppo_goes_on:
            return Script(run_s=None)
        return Script(message=trained(pod))


@pytest.fixture
def jobs(installed: ControlPlane, namespace: str) -> Jobs:
    """In a namespace that refuses every pod that is not restricted."""
    installed.client.patch("v1/namespaces", namespace, {"metadata": {"labels": RESTRICTED}})
    return Jobs(installed.client, namespace)


@pytest.fixture
def trainers(installed: ControlPlane, make_node: Callable[..., FakeNode]) -> Iterator[Trainers]:
    for _ in range(2):
        make_node({"nvidia.com/gpu": 8})
    trainers = Trainers()
    with Kubelet(installed.kubeconfig, Scripted(trainers.play)):
        yield trainers


@pytest.fixture
def release(
    installed: ControlPlane, trainers: Trainers, program: Callable[[str], Path], tmp_path: Path
) -> Iterator[Release]:
    helm = Helm(program("helm"), tmp_path, installed.kubeconfig)
    with Release(installed, helm, tmp_path) as release:
        yield release


def test_training_goes_on_through_upgrade_removal_and_a_new_installation(
    release: Release, jobs: Jobs, trainers: Trainers
) -> None:
    release.helm("install", CHART)
    with release.operator() as operator:
        wait_until(lambda: operator.is_ready)
        jobs.create(manifest(jobs.namespace, stages="sft reward ppo"))
        jobs.wait_running("ppo")
        before = running_attempt(jobs)
        assert report_until_taken(operator, jobs, 41)
        take_owners_away(jobs)
        check(release, operator)

    assert "Uid" not in release.columns
    values = {"watchNamespaces": [jobs.namespace], "logLevel": "DEBUG"}
    release.helm("upgrade", release.next_version("0.2.0"), values=values)
    assert "Uid" in release.columns
    with release.operator() as operator:
        labels = operator.object["spec"]["template"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/version"] == "0.2.0"
        assert report_until_taken(operator, jobs, 60)
        assert running_attempt(jobs) == before

    release.helm("uninstall", "--wait")
    assert "Uid" in release.columns  # the resource is kept, and so are the jobs
    assert running_attempt(jobs) == before
    assert stage(jobs.get(), "ppo")["progressPercent"] == 60

    hide_claim(jobs)
    release.helm("install", CHART, values={"jobDefaults": {"gangSchedulers": ["native"]}})
    assert "Uid" not in release.columns
    with release.operator() as operator:
        assert report_until_taken(operator, jobs, 90)
        assert running_attempt(jobs) == before
        leave_pods_without_a_job(jobs)
        trainers.ppo_goes_on = False
        have_job_replaced(jobs)
        jobs.wait_ready()

    assert [asked for asked in release.requests if asked.code == 403] == []
    used = {Right(*asked[:3]) for asked in release.requests if asked.resource}
    given = release.may(jobs.namespace, NAMESPACE)
    assert {right._replace(name="") for right in given} == used | RARE | UNUSED
    assert {right.name for right in given if right.resource == "leases"} == {"", RELEASE}
    assert not UNUSED & used

    release.helm("upgrade", CHART, values={"crds": {"keep": False}})
    release.helm("uninstall", "--wait")
    assert jobs.client.find(CRDS, NAME) is None


def check(release: Release, operator: PlayedDeployment) -> None:
    """Both replicas' pods are admitted; `helm test` runs its pod, whose command finds the operator,
    and notices where there is none."""
    release.plane.client.wait_for(
        "apps/v1/deployments",
        RELEASE,
        lambda found: found is not None and found["status"].get("availableReplicas") == 2,
        NAMESPACE,
    )
    assert "Phase:          Succeeded" in release.helm("test")
    container = yaml.safe_load(release.helm("get hooks"))["spec"]["containers"][0]
    (address,) = container["env"]
    assert address["value"] == f"http://{RELEASE}.{NAMESPACE}.svc:8080"
    words = [sys.executable, *container["command"][1:], *container["args"]]
    for port, code in ((operator.health_port, 0), (1, 1)):
        env = {"ADDRESS": f"http://127.0.0.1:{port}"}
        assert subprocess.run(words, env=env, capture_output=True, check=False).returncode == code


def running_attempt(jobs: Jobs) -> dict[str, Any]:
    """What must not change: the Job, its pods, and the attempt's number."""
    (job,) = (j for j in jobs.children("batch/v1/jobs") if "-ppo-" in j["metadata"]["name"])
    return {
        "job": job["metadata"]["uid"],
        "pods": {pod["metadata"]["uid"] for pod in jobs.pods("ppo")},
        "attempts": jobs.attempts(),
    }


def report_until_taken(operator: PlayedDeployment, jobs: Jobs, percent: int) -> bool:
    """Whether a report of PPO's first pod reaches the status."""
    pod = jobs.pods("ppo")[0]
    token = token_of(jobs.client, pod)
    wait_until(lambda: report(operator.progress_port, path_of(pod), token, percent) == 200)
    jobs.wait(lambda job: stage(job, "ppo").get("progressPercent") == percent)
    return True


def take_owners_away(jobs: Jobs) -> None:
    """The operator puts back what somebody has taken off the attempt's objects."""
    nobody = {"metadata": {"ownerReferences": None}}
    for plural in CHILDREN:
        jobs.client.patch(plural, "tiny-ppo-1", nobody, jobs.namespace)

    def are_owned() -> bool:
        found = (jobs.client.get(plural, "tiny-ppo-1", jobs.namespace) for plural in CHILDREN)
        return all(child["metadata"].get("ownerReferences") for child in found)

    wait_until(are_owned)


def hide_claim(jobs: Jobs) -> None:
    """The next attempt finds a claim that no watch has told of."""
    (claim,) = jobs.children("v1/persistentvolumeclaims")
    unseen = {"metadata": {"labels": None}}
    name = claim["metadata"]["name"]
    jobs.client.patch("v1/persistentvolumeclaims", name, unseen, jobs.namespace)


def leave_pods_without_a_job(jobs: Jobs) -> None:
    """The operator ends them, and begins another attempt when they are gone."""
    jobs.client.delete("batch/v1/jobs", "tiny-ppo-1", jobs.namespace, propagation="Orphan")
    jobs.wait(lambda job: is_running_in(job, 2))


def have_job_replaced(jobs: Jobs) -> None:
    """The operator ends an attempt whose settings are others now."""
    jobs.patch({"spec": {"stages": {"ppo": {"retry": {"deadlineSeconds": 3600}}}}})
    jobs.wait(lambda job: stage(job, "ppo").get("attempt") == 3)


def is_running_in(job: dict[str, Any] | None, attempt: int) -> bool:
    ppo = stage(job, "ppo")
    return (ppo.get("attempt"), ppo.get("phase")) == (attempt, "Running")
