"""What the chart and the operator render, on a real kubelet: containerd and runc run the pods from
the images, the API server lets nothing but restricted pods in, pods find each other by DNS.

Run by `make kubelet-test`, as root, after `make images BUILDER=buildah`. The tests look at one
story, which the fixture `trained` tells.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import short_job
from chart import CHART, NAMESPACE, RELEASE, Helm
from cluster.binaries import find_binaries
from cluster.client import DEFINITIONS, is_established
from cluster.control_plane import ControlPlane
from cluster_jobs import Jobs, condition, stage, wait_until
from node_files import ADDRESS
from node_storage import STORAGE_CLASS, offer_claim, offer_volume
from prometheus_client.parser import text_string_to_metric_families
from real_kubelet import RealKubelet, make_network
from releases import RESTRICTED
from reports import OPENER
from rlhf_operator.render.security import USER_ID

OPERATOR = os.environ.get("OPERATOR_IMAGE") or "rlhf-operator:0.1.0"
TRAINER = os.environ.get("TRAINER_IMAGE") or "rlhf-trainer:0.1.0"
PATIENCE = 600.0
"""Seconds for what takes one minute on two free cores."""

SAVED_BY_SIGTERM = 143

Object = dict[str, Any]


def job() -> Object:
    """Of the quickstart job SFT, and a reward model that two pods train; on the processor."""
    made = short_job.manifest()
    spec = made["spec"]
    del spec["evaluation"]
    stages = spec["stages"]
    spec["stages"] = {name: stages[name] for name in ("sft", "reward")}
    spec["resources"] = {"gpusPerNode": 0, "cpu": "200m", "memory": "3Gi"}
    stages["sft"] |= {"maxSteps": 40, "checkpointing": {"everySteps": 2}}
    stages["sft"]["retry"] = {"backoffSeconds": 1}
    stages["reward"]["resources"] = {"nodes": 2}
    return made


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One that pods can reach, in place of the other tests'."""
    make_network()
    directory = tmp_path_factory.mktemp("control-plane")
    with ControlPlane(find_binaries(), directory, address=ADDRESS) as running:
        yield running


@pytest.fixture(scope="session")
def kubelet(control_plane: ControlPlane, program: Callable[[str], Path]) -> Iterator[RealKubelet]:
    directory = Path(tempfile.mkdtemp(prefix="node-", dir="/tmp"))
    with RealKubelet(control_plane, program, directory) as running:
        for image in (OPERATOR, TRAINER):
            running.images.take(image)
        yield running
    shutil.rmtree(directory)


class Installed(NamedTuple):
    """The chart, as anybody would install it in a namespace for restricted pods."""

    plane: ControlPlane
    helm: Helm

    def pods(self) -> list[Object]:
        labels = f"app.kubernetes.io/instance={RELEASE}"
        return self.plane.client.list("v1/pods", NAMESPACE, labels=labels)

    def metric(self, name: str, **labels: str) -> float:
        """The sum over the replicas."""
        found = (sample for pod in self.pods() for sample in _samples(pod["status"]["podIP"]))
        return sum(s.value for s in found if s.name == name and labels.items() <= s.labels.items())


@pytest.fixture(scope="module")
def installed_chart(
    control_plane: ControlPlane,
    kubelet: RealKubelet,
    program: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Installed]:
    client = control_plane.client
    client.apply(STORAGE_CLASS)
    space = {"name": NAMESPACE, "labels": RESTRICTED}
    client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": space})
    name, _, tag = OPERATOR.rpartition(":")
    values = {
        "image": {"repository": name, "tag": tag},
        "jobDefaults": {"image": TRAINER, "storageClass": STORAGE_CLASS["metadata"]["name"]},
    }
    helm = Helm(program("helm"), tmp_path_factory.mktemp("helm"), control_plane.kubeconfig)
    installed = Installed(control_plane, helm)
    try:
        helm.run(
            "install", RELEASE, CHART, "-n", NAMESPACE, "--wait", "--timeout=110s", values=values
        )
        client.wait_for(DEFINITIONS, "rlhfjobs.rlhf.dev", is_established)
        yield installed
    finally:
        for pod in client.list("v1/pods", NAMESPACE):
            show(kubelet, pod)
    helm.run("uninstall", RELEASE, "-n", NAMESPACE, "--wait")


class Trained(NamedTuple):
    """The job at its end, and what was seen on the way."""

    job: Object
    jobs: Jobs
    checkpoints: Path
    processes: list[dict[str, str]]
    """Of SFT's first pod, by the names of /proc/PID/status; `root` are its mount's options."""

    exit_code: int
    """Of that pod, which was deleted."""

    logs: dict[str, str]
    """What each pod printed, by its name."""


@pytest.fixture(scope="module")
def trained(
    installed_chart: Installed,
    kubelet: RealKubelet,
    module_namespace: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    client = installed_chart.plane.client
    client.patch("v1/namespaces", module_namespace, {"metadata": {"labels": RESTRICTED}})
    volumes = tmp_path_factory.mktemp("volumes")
    data = offer_volume(client, volumes, short_job.CLAIM)
    short_job.fill(data)
    offer_claim(client, module_namespace, short_job.CLAIM)
    checkpoints = offer_volume(client, volumes, f"{short_job.NAME}-checkpoints", size="100Gi")
    jobs = Jobs(client, module_namespace)
    jobs.create(job())
    try:
        wait_until(lambda: any(checkpoints.glob("*/sft-*/attempt-1/steps/step-*")), PATIENCE)
        (pod,) = jobs.pods("sft")
        processes = [facts(process) for process in kubelet.processes(pod)]
        exit_code = delete(installed_chart.plane, pod)
        done = jobs.wait(is_over, short_job.NAME, PATIENCE)
    finally:
        pods = client.list("v1/pods", module_namespace)
        for pod in pods:
            show(kubelet, pod)
    logs = {pod["metadata"]["name"]: kubelet.log(pod) for pod in pods}
    return Trained(done, jobs, checkpoints, processes, exit_code, logs)


def test_both_replicas_of_the_operator_answer_and_so_does_what_helm_tests(
    installed_chart: Installed,
) -> None:
    states = [pod["status"]["containerStatuses"][0] for pod in installed_chart.pods()]
    assert [state["ready"] for state in states] == [True, True]
    assert [state["restartCount"] for state in states] == [0, 0]
    assert "Phase:          Succeeded" in installed_chart.helm.run("test", RELEASE, "-n", NAMESPACE)


def test_the_job_is_ready(trained: Trained) -> None:
    assert condition(trained.job, "Ready")[0] == "True", trained.job["status"]["conditions"]


def test_a_pod_is_nobody_with_rights_and_writes_to_its_volumes_alone(trained: Trained) -> None:
    assert trained.processes
    for process in trained.processes:
        assert set(process["Uid"].split()) == set(process["Gid"].split()) == {str(USER_ID)}
        assert {int(process[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapInh")} == {0}
        assert process["NoNewPrivs"] == "1"
        assert process["Seccomp"] == "2"  # a filter
        assert "ro" in process["root"].split(",")


def test_a_deleted_pod_saves_and_the_next_attempt_goes_on_from_there(trained: Trained) -> None:
    assert trained.exit_code == SAVED_BY_SIGTERM
    assert stage(trained.job, "sft")["attempt"] == 2
    (log,) = (text for name, text in trained.logs.items() if "-sft-2-" in name)
    assert "going on from step" in log


def test_two_pods_meet_by_their_names(trained: Trained) -> None:
    assert stage(trained.job, "reward")["attempt"] == 1
    pods = trained.jobs.pods("reward")
    assert [pod["status"]["phase"] for pod in pods] == ["Succeeded"] * 2
    assert len({pod["status"]["podIP"] for pod in pods}) == 2


def test_checkpoints_are_on_the_claim_and_belong_to_the_pods_user(trained: Trained) -> None:
    for name in ("sft", "reward"):
        output = stage(trained.job, name)["checkpoint"]
        folder = trained.checkpoints / output["uri"]
        assert short_job.digest_of(folder) == output["digest"]
        assert {path.stat().st_uid for path in folder.rglob("*")} == {USER_ID}


def test_progress_was_reported_to_the_operators_service(
    trained: Trained, installed_chart: Installed
) -> None:
    assert installed_chart.metric("rlhf_operator_progress_reports_total", code="200") > 0
    assert stage(trained.job, "sft")["progressPercent"] == 100


def test_kubectl_logs_shows_what_a_pod_printed(
    trained: Trained, installed_chart: Installed
) -> None:
    (name,) = (name for name in trained.logs if "-sft-2-" in name)
    shown = installed_chart.plane.kubectl("-n", trained.jobs.namespace, "logs", name)
    assert "going on from step" in shown


def is_over(job: Object | None) -> bool:
    return "True" in (condition(job, "Ready")[0], condition(job, "Stalled")[0])


def facts(process: Path) -> dict[str, str]:
    found = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
    mounts = (line.split() for line in (process / "mountinfo").read_text().splitlines())
    return found | {"root": next(words[5] for words in mounts if words[4] == "/")}


def delete(plane: ControlPlane, pod: Object) -> int:
    """As a person does; the exit code that the kubelet then tells of."""
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    changes = plane.client.watch("v1/pods", namespace)
    plane.kubectl("-n", namespace, "delete", "pod", name, "--wait=false")
    for _, seen in changes:
        (status,) = seen.get("status", {}).get("containerStatuses") or [{}]
        if seen["metadata"]["name"] == name and (end := status.get("state", {}).get("terminated")):
            return int(end["exitCode"])
    raise AssertionError(f"{name} went without a word about its end")


def show(kubelet: RealKubelet, pod: Object) -> None:
    """A pod's status and log, for whoever reads why a test failed."""
    print(f"--- {pod['metadata']['name']}\n{pod['status']}\n{kubelet.log(pod)[-6000:]}")


def _samples(address: str) -> list[Any]:
    with OPENER.open(f"http://{address}:8080/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return [sample for family in families for sample in family.samples]
