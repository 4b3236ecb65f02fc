"""rlhfctl report, plot, fetch on a cluster: files of a claim come here through a pod's log."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Processes
from cluster.nodes import FakeNodes
from rlhf_api.job import RLHFJob
from rlhf_api.validation import parse_job
from rlhf_cli.failures import Failure
from rlhf_cli.targets.files import Received
from synthetic_run import MANIFEST, write_run

Object = dict[str, Any]
JOBS = "rlhf.dev/v1alpha1/rlhfjobs"
CLAIMS = "v1/persistentvolumeclaims"
WEIGHTS = bytes(range(256)) * 900


class Kept:
    """A finished job whose claim holds what trainers left; nobody works on it."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path) -> None:
        self.plane, self.namespace, self.folder = plane, namespace, folder

    def make(self) -> None:
        client = self.plane.client
        spec = {**MANIFEST["spec"], "image": "trainer:1", "checkpoints": {"subPath": "team"}}
        made = client.create({**MANIFEST, "spec": spec}, self.namespace)
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "quickstart-checkpoints"},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
        client.create(claim, self.namespace)
        bound = client.wait_for(CLAIMS, "quickstart-checkpoints", _is_bound, self.namespace)
        volume = client.get("v1/persistentvolumes", bound["spec"]["volumeName"])
        self._fill(parse_job(made), Path(volume["spec"]["hostPath"]["path"]) / "team")

    def _fill(self, job: RLHFJob, volume: Path) -> None:
        run = self.folder / "as-a-run"
        finished = write_run(run, job=job)
        status = finished.to_dict()["status"]
        uri = status["stages"]["ppo"]["checkpoint"]["uri"]
        (run / "volumes/quickstart-checkpoints").rename(volume)
        self.weights = volume / uri / "model.safetensors"
        status["stages"]["ppo"]["checkpoint"]["digest"] = _commit(volume / uri)
        status["observedGeneration"] = job.metadata.generation
        self.plane.client.patch(
            JOBS, "quickstart", {"status": status}, self.namespace, subresource="status"
        )

    def run(self, *words: str, code: int = 0, kubeconfig: Path | None = None) -> str:
        place = ["--kubeconfig", str(kubeconfig or self.plane.kubeconfig), "-n", self.namespace]
        command = [sys.executable, "-m", "rlhf_cli", *words, *place]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=self.folder, timeout=90, check=False
        )
        said = done.stdout + done.stderr
        assert "Traceback" not in said
        assert done.returncode == code, said
        return said


def _is_bound(claim: Object | None) -> bool:
    return ((claim or {}).get("status") or {}).get("phase") == "Bound"


def _commit(output: Path) -> str:
    """Weights and their manifest; its digest."""
    (output / "model.safetensors").write_bytes(WEIGHTS)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    files = {"model.safetensors": {"sha256": digest, "size": len(WEIGHTS)}}
    text = json.dumps({"files": files}).encode()
    (output / "manifest.json").write_bytes(text)
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


@pytest.fixture(scope="module")
def kept(
    installed: ControlPlane,
    fake_nodes: FakeNodes,
    module_namespace: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Kept]:
    folder = tmp_path_factory.mktemp("files")
    node = fake_nodes.add()
    try:
        with Kubelet(installed.kubeconfig, Processes(folder / "pods"), [node]):
            found = Kept(installed, module_namespace, folder)
            found.make()
            yield found
    finally:
        fake_nodes.remove(node)


def test_a_report_has_curves_and_answers_and_leaves_no_pod(kept: Kept) -> None:
    assert kept.run("report", "quickstart") == "quickstart.html\n"
    text = (kept.folder / "quickstart.html").read_text()
    assert text.count("<svg") > 8
    assert "A banana is yellow." in text
    pods = kept.plane.client.list("v1/pods", kept.namespace)
    assert all("deletionTimestamp" in pod["metadata"] for pod in pods)


def test_curves_are_drawn_in_the_terminal_and_as_an_image(kept: Kept) -> None:
    said = kept.run("plot", "quickstart", "--stage", "ppo", "-m", "ppo/reward")
    assert "ppo  ppo/reward" in said
    assert "at step 60" in said
    assert kept.run("plot", "quickstart", "--out", "curves.png") == "curves.png\n"
    assert (kept.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "has no metric" in kept.run("plot", "quickstart", "-m", "nonsense", code=64)


def test_a_checkpoint_is_fetched_whole(kept: Kept) -> None:
    assert kept.run("fetch", "quickstart", "--stage", "ppo") == "quickstart-ppo\n"
    assert (kept.folder / "quickstart-ppo/model.safetensors").read_bytes() == WEIGHTS
    assert "is not empty" in kept.run("fetch", "quickstart", "--stage", "ppo", code=64)


def test_a_damaged_checkpoint_is_refused(kept: Kept) -> None:
    kept.weights.write_bytes(WEIGHTS[:-1] + b"x")
    try:
        said = kept.run("fetch", "quickstart", "--stage", "ppo", "--out", "damaged", code=65)
    finally:
        kept.weights.write_bytes(WEIGHTS)
    assert "model.safetensors is not what the checkpoint's manifest says" in said


def test_who_may_not_make_pods_gets_a_report_from_the_status(kept: Kept) -> None:
    plane = kept.plane
    plane.kubectl("create", "serviceaccount", "reader", "-n", kept.namespace)
    rules = ["--verb=get,list", "--resource=rlhfjobs.rlhf.dev,pods,pods/log"]
    plane.kubectl("create", "role", "reader", *rules, "-n", kept.namespace)
    subject = f"--serviceaccount={kept.namespace}:reader"
    plane.kubectl("create", "rolebinding", "reader", "--role=reader", subject, "-n", kept.namespace)
    kubeconfig = plane.kubeconfig_for("reader", kept.namespace)
    said = kept.run("report", "quickstart", "--out", "plain.html", kubeconfig=kubeconfig)
    assert "Without the trainers' own records" in said
    assert "held-out pairs" in (kept.folder / "plain.html").read_text()
    said = kept.run("fetch", "quickstart", "--out", "none", code=77, kubeconfig=kubeconfig)
    assert "can-i create pods" in said


def frames(path: str, content: str = "eAFLTEoGAAJNASc=") -> list[str]:
    digest = hashlib.sha256(b"abc").hexdigest()
    return [f'file 3 "{path}"', f"data {content}", f"end {digest}", "done 1"]


def take(folder: Path, lines: list[str]) -> Received:
    received = Received(folder, below="job/output")
    for line in lines:
        received.take(line)
    return received


def test_frames_become_files(tmp_path: Path) -> None:
    assert take(tmp_path, frames("checkpoints/job/output/a/b.txt")).is_complete
    assert (tmp_path / "a/b.txt").read_bytes() == b"abc"


@pytest.mark.parametrize("path", ["/etc/passwd", "checkpoints/job/output/../../x", "checkpoints/y"])
def test_a_reader_writes_nowhere_else(tmp_path: Path, path: str) -> None:
    with pytest.raises(Failure, match="was not asked for"):
        take(tmp_path, frames(path))


def test_lost_lines_are_noticed(tmp_path: Path) -> None:
    whole = frames("checkpoints/job/output/a")
    for lines in (whole[1:], [whole[0], *whole[2:]], frames("checkpoints/job/output/a", "xx")):
        with pytest.raises(Failure, match="lost on the way"):
            take(tmp_path, lines)
    assert not take(tmp_path, whole[:2]).is_complete
    assert list(tmp_path.glob("a")) == []
