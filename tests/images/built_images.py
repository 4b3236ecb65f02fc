"""The images as they were built, on a real control plane: the chart's Deployment and an RLHFJob's
pods run from them, with a read-only root file system and as the users that the pods say.

Run by `make images-test`, as root, after `make images BUILDER=buildah`. Ports 8080 and 8082 must be
free.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import short_job
import yaml
from buildah_images import Image, Root
from chart import CHART, NAMESPACE, RELEASE, Helm
from cluster.client import DEFINITIONS, is_established
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet
from cluster.nodes import FakeNodes
from cluster_jobs import Jobs, condition, stage, wait_until
from image_runtime import FromImages
from reports import OPENER
from rlhf_operator.render.security import USER_ID

OPERATOR = os.environ.get("OPERATOR_IMAGE") or "rlhf-operator:0.1.0"
TRAINER = os.environ.get("TRAINER_IMAGE") or "rlhf-trainer:0.1.0"
OPERATOR_USER = 65532
LARGEST_OPERATOR = 250e6


def short_sft() -> dict[str, Any]:
    """The quickstart's first stage, cut to a few steps on the processor."""
    made = short_job.manifest()
    spec = made["spec"]
    spec["stages"] = {"sft": spec["stages"]["sft"]}
    spec["resources"] = {"gpusPerNode": 0}
    del spec["evaluation"]
    return made


@pytest.fixture(scope="module")
def helm(control_plane: ControlPlane, program: Any, tmp_path_factory: Any) -> Helm:
    return Helm(program("helm"), tmp_path_factory.mktemp("helm"), control_plane.kubeconfig)


@pytest.fixture(scope="module")
def installed_chart(
    control_plane: ControlPlane, fake_nodes: FakeNodes, helm: Helm, tmp_path_factory: Any
) -> Iterator[Kubelet]:
    """The chart, its CRD included, with one replica: there is one port 8080."""
    image, _, tag = OPERATOR.rpartition(":")
    values = {
        "replicaCount": 1,
        "image": {"repository": image, "tag": tag},
        "jobDefaults": {"image": TRAINER},
    }
    fake_nodes.add()
    runtime = FromImages(tmp_path_factory.mktemp("pods"), control_plane.server)
    with Kubelet(control_plane.kubeconfig, runtime) as kubelet:
        helm.run("install", RELEASE, CHART, "-n", NAMESPACE, "--create-namespace", values=values)
        control_plane.client.wait_for(DEFINITIONS, "rlhfjobs.rlhf.dev", is_established)
        try:
            yield kubelet
        finally:
            for pod in control_plane.client.list("v1/pods", NAMESPACE):
                show(kubelet, pod)
        helm.run("uninstall", RELEASE, "-n", NAMESPACE, "--wait")
        wait_until(lambda: not control_plane.client.list("v1/pods", NAMESPACE), 60)


def test_the_operator_is_small_and_has_neither_compiler_nor_pip_nor_root_as_its_user() -> None:
    image = Image.of(OPERATOR)
    root = Root(image)
    try:
        size = sum(
            (Path(folder) / name).lstat().st_size
            for folder, _, names in os.walk(root.path)
            for name in names
        )
        found = [
            path
            for folder in ("opt/venv/bin", "usr/local/bin", "usr/bin", "bin")
            for name in ("gcc", "cc", "ld", "make")
            if (path := root.path / folder / name).exists()
        ]
        found += (root.path / "opt/venv/bin").glob("pip*")
    finally:
        root.remove()
    print(f"{OPERATOR}: {size / 1e6:.0f} MB")
    assert size < LARGEST_OPERATOR
    assert not found
    assert image.user == f"{OPERATOR_USER}:{OPERATOR_USER}"
    assert set(image.ports) == {"8080/tcp", "8082/tcp", "8443/tcp"}


def test_an_image_says_what_it_is() -> None:
    for name in (OPERATOR, TRAINER):
        labels = Image.of(name).labels
        said = {key.removeprefix("org.opencontainers.image."): text for key, text in labels.items()}
        assert said["title"] == name.rpartition("/")[2].partition(":")[0]
        assert said["version"] == "0.1.0"
        assert said["licenses"] == "Apache-2.0"
        assert said["revision"]


def test_the_operators_probes_are_answered(installed_chart: Kubelet) -> None:
    for path in ("/healthz", "/readyz"):
        wait_until(lambda path=path: answers(path), 60)


def test_the_operator_is_another_user_without_rights_on_a_root_that_is_read_only(
    installed_chart: Kubelet,
) -> None:
    wait_until(lambda: answers("/readyz"), 60)
    (process,) = (
        folder
        for folder in Path("/proc").glob("[0-9]*")
        if words_of(folder)[:3] == ["python", "-m", "rlhf_operator"]
        and folder.stat().st_uid == OPERATOR_USER
    )
    status = dict(line.split(":\t") for line in (process / "status").read_text().splitlines())
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(OPERATOR_USER)}
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapInh")} == {0}
    assert status["NoNewPrivs"] == "1"
    mounts = [line.split() for line in (process / "mountinfo").read_text().splitlines()]
    (options,) = (words[5] for words in mounts if words[4] == "/")
    assert "ro" in options.split(",")


def test_helm_test_passes_from_the_image(installed_chart: Kubelet, helm: Helm) -> None:
    wait_until(lambda: answers("/readyz"), 60)
    assert "Phase:          Succeeded" in helm.run("test", RELEASE, "-n", NAMESPACE)


def test_a_stage_is_trained_from_the_images(
    installed_chart: Kubelet, control_plane: ControlPlane, module_namespace: str
) -> None:
    jobs = Jobs(control_plane.client, module_namespace)
    offer_data(control_plane, module_namespace)
    jobs.create(short_sft())
    try:
        done = jobs.wait(is_over, short_job.NAME, 300)
    finally:
        for pod in jobs.pods("sft"):
            show(installed_chart, pod)
    assert condition(done, "Ready")[0] == "True", done["status"]["conditions"]
    trained = stage(done, "sft")
    assert trained["attempt"] == 1
    assert trained["checkpoint"]["digest"].startswith("sha256:")
    (claim,) = jobs.children("v1/persistentvolumeclaims")
    folder = volume(control_plane, claim["metadata"]["name"], module_namespace)
    owners = {path.stat().st_uid for path in folder.rglob("*") if path.is_file()}
    assert owners == {USER_ID}


def show(kubelet: Kubelet, pod: dict[str, Any]) -> None:
    """A pod's log, for whoever reads why a test failed."""
    with contextlib.suppress(LookupError):
        print(f"--- {pod['metadata']['name']}\n{kubelet.log(pod)[-6000:]}")


def words_of(process: Path) -> list[str]:
    """Of its command; none where it has ended."""
    try:
        return (process / "cmdline").read_text().split("\0")
    except OSError:
        return []


def answers(path: str) -> bool:
    try:
        with OPENER.open(f"http://127.0.0.1:8080{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def is_over(job: dict[str, Any] | None) -> bool:
    return "True" in (condition(job, "Ready")[0], condition(job, "Stalled")[0])


def offer_data(plane: ControlPlane, namespace: str) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": short_job.CLAIM},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    plane.kubectl("-n", namespace, "apply", "-f", "-", input=yaml.safe_dump(claim))
    bound = "--for=jsonpath={.status.phase}=Bound"
    plane.kubectl("-n", namespace, "wait", bound, f"pvc/{short_job.CLAIM}", "--timeout=20s")
    short_job.fill(volume(plane, short_job.CLAIM, namespace))


def volume(plane: ControlPlane, claim: str, namespace: str) -> Path:
    """The directory behind a claim."""
    bound = plane.client.get("v1/persistentvolumeclaims", claim, namespace)
    found = plane.client.get("v1/persistentvolumes", bound["spec"]["volumeName"])
    return Path(found["spec"]["hostPath"]["path"])
