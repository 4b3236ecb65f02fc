"""The chart on a real API server: installed, used with no other rights, upgraded, removed."""

from __future__ import annotations

import shutil
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
from operator_rights import GIVEN
from played import PlayedDeployment
from reports import path_of, report, scraped, token_of
from test_chart_rights import rights

CRDS = "apiextensions.k8s.io/v1/customresourcedefinitions"
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class Release:
    """The chart in its namespace, and what its operator has done over all its lives."""

    def __init__(self, plane: ControlPlane, helm: Helm, directory: Path) -> None:
        self.plane, self._helm, self._directory = plane, helm, directory
        self.used: set[tuple[str, str]] = set()

    def helm(self, verb: str, *words: str | Path, values: dict[str, Any] | None = None) -> str:
        return self._helm.run(
            *verb.split(), RELEASE, *words, "--namespace", NAMESPACE, values=values
        )

    def operator(self) -> PlayedDeployment:
        log = self._directory / "operator.log"
        return PlayedDeployment(self.plane, RELEASE, NAMESPACE, log)

    def remember(self, operator: PlayedDeployment) -> None:
        """Which requests it has made, and that none of them was forbidden."""
        for name, *labels in scraped(operator.health_port):
            if name == "rlhf_operator_api_requests_total":
                code, resource, verb = labels
                assert code != "403", f"{verb} {resource} is forbidden"
                self.used.add((VERBS.get(verb, "read"), resource))
        assert "orbidden" not in (self._directory / "operator.log").read_text()

    def next_version(self, version: str) -> Path:
        """The chart as it is released next."""
        folder = self._directory / version
        shutil.copytree(CHART, folder)
        meta = yaml.safe_load((folder / "Chart.yaml").read_text())
        meta |= {"version": version, "appVersion": version}
        (folder / "Chart.yaml").write_text(yaml.safe_dump(meta))
        return folder


SELDOM = {
    ("patch", "jobs"),
    ("patch", "configmaps"),
    ("patch", "services"),
    ("patch", "podgroups"),
    ("delete", "pods"),
}
"""What it does only where somebody has changed its objects; tests/operator has these cases."""


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
    release = Release(installed, Helm(program("helm"), tmp_path, installed.kubeconfig), tmp_path)
    yield release
    release.helm("uninstall", "--wait", "--ignore-not-found")
    installed.client.delete("v1/namespaces", NAMESPACE)
    installed.client.wait_for("v1/namespaces", NAMESPACE, lambda one: one is None, timeout=60)


def test_training_goes_on_through_upgrade_removal_and_a_new_installation(
    release: Release, jobs: Jobs, trainers: Trainers
) -> None:
    # The CRD of this control plane was applied by kubectl: Helm is told to take it over.
    release.helm("install", CHART, "--create-namespace", "--take-ownership")
    with release.operator() as operator:
        wait_until(lambda: operator.is_ready)
        jobs.create(manifest(jobs.namespace, stages="sft reward ppo"))
        jobs.wait_running("ppo", timeout=60)
        before = running_attempt(jobs)
        pod = jobs.pods("ppo")[0]
        token = token_of(jobs.client, pod)
        assert report(operator.progress_port, path_of(pod), token, 41) == 200
        jobs.wait(lambda job: stage(job, "ppo").get("progressPercent") == 41)
        release.remember(operator)
        check(release, operator)

    values = {"watchNamespaces": [jobs.namespace], "logLevel": "DEBUG"}
    release.helm("upgrade", release.next_version("0.2.0"), values=values)
    with release.operator() as operator:
        labels = operator.object["spec"]["template"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/version"] == "0.2.0"
        assert report_until_taken(operator, jobs, 60)
        assert running_attempt(jobs) == before
        release.remember(operator)

    release.helm("uninstall", "--wait")
    assert jobs.client.get(CRDS, "rlhfjobs.rlhf.dev")["status"]["storedVersions"] == ["v1alpha1"]
    assert running_attempt(jobs) == before
    assert stage(jobs.get(), "ppo")["progressPercent"] == 60

    release.helm("install", CHART)
    with release.operator() as operator:
        assert report_until_taken(operator, jobs, 90)
        assert running_attempt(jobs) == before
        trainers.ppo_goes_on = False
        for pod in jobs.pods("ppo"):
            jobs.client.delete("v1/pods", pod["metadata"]["name"], jobs.namespace)
        jobs.wait_ready()
        release.remember(operator)
    assert changes(GIVEN) - release.used == SELDOM


def check(release: Release, operator: PlayedDeployment) -> None:
    """`helm test` runs its pod, and the pod's command finds the operator, and notices where not."""
    assert "Phase:          Succeeded" in release.helm("test")
    container = yaml.safe_load(release.helm("get hooks"))["spec"]["containers"][0]
    (address,) = container["env"]
    assert address["value"] == f"http://{RELEASE}.{NAMESPACE}.svc:8080"
    words = [sys.executable, *container["command"][1:], *container["args"]]
    for port, code in ((operator.health_port, 0), (1, 1)):
        env = {"ADDRESS": f"http://127.0.0.1:{port}"}
        assert subprocess.run(words, env=env, capture_output=True, check=False).returncode == code


def changes(given: dict[str, list[dict[str, Any]]]) -> set[tuple[str, str]]:
    """The changing verbs that the operator's account has, on what this control plane serves."""
    rules = [*given["jobs"], *given["gangs"], *given["lease"], *given["progress"]]
    return {
        (verb, resource.partition("/")[0])
        for group, resource, verb in rights(rules)
        if verb in VERBS.values() and (group, resource) != ("scheduling.k8s.io", "workloads")
    }


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
