"""rlhfctl report, plot, fetch on a cluster: files of a claim come here through a pod's log."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from a_run_here import RunHere
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Processes
from cluster.nodes import FakeNodes
from cluster_jobs import wait_until
from cut_once import CutOnce
from rlhf_api.job import RLHFJob
from rlhf_api.status import CheckpointRef
from rlhf_api.validation import parse_job
from rlhf_cli.doctor.permission_checks import RIGHTS
from rlhf_cli.failures import Failure
from rlhf_cli.targets.cluster_files import trainer_images
from rlhf_cli.targets.files import Received, verified
from synthetic_run import MANIFEST, write_run

Object = dict[str, Any]
JOBS = "rlhf.dev/v1alpha1/rlhfjobs"
CLAIMS = "v1/persistentvolumeclaims"
WEIGHTS = bytes(range(256)) * 900


QUOTA = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "memory"},
    "spec": {"hard": {"requests.memory": "8Gi", "limits.memory": "8Gi"}},
}
"""It refuses pods that do not say how much they take at most."""


class Kept:
    """A finished job whose claim holds what trainers left; nobody works on it."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path) -> None:
        self.plane, self.namespace, self.folder = plane, namespace, folder
        noise = random.Random(0)
        names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
        self.large = {name: noise.randbytes(8 << 20) for name in names}

    def make(self) -> None:
        client = self.plane.client
        spec = {**MANIFEST["spec"], "checkpoints": {"subPath": "team"}}
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
        client.create(QUOTA, self.namespace)
        client.wait_for("v1/resourcequotas", "memory", _is_counted, self.namespace)
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
        digest = _commit(volume / uri, {"model.safetensors": WEIGHTS})
        status["stages"]["ppo"]["checkpoint"]["digest"] = digest
        large = status["stages"]["dpo"]["checkpoint"]
        large["digest"] = _commit(volume / large["uri"], self.large)
        status["stages"]["sft"]["image"] = "trainer:1"  # a default's; no pod is left that tells it
        status["observedGeneration"] = job.metadata.generation
        self.plane.client.patch(
            JOBS, "quickstart", {"status": status}, self.namespace, subresource="status"
        )

    def start(self, *words: str, kubeconfig: Path | None = None) -> subprocess.Popen[str]:
        return RunHere(self.folder, os.environ).start(*words, *self._place(kubeconfig))

    def run(self, *words: str, code: int = 0, kubeconfig: Path | None = None) -> str:
        return RunHere(self.folder, os.environ).rlhfctl(*words, *self._place(kubeconfig), code=code)

    def _place(self, kubeconfig: Path | None) -> list[str]:
        return ["--kubeconfig", str(kubeconfig or self.plane.kubeconfig), "-n", self.namespace]


def _is_counted(quota: Object | None) -> bool:
    return "hard" in ((quota or {}).get("status") or {})


def _is_bound(claim: Object | None) -> bool:
    return ((claim or {}).get("status") or {}).get("phase") == "Bound"


def _commit(output: Path, contents: Mapping[str, bytes]) -> str:
    """Weights and their manifest; its digest."""
    files = {}
    for name, content in contents.items():
        (output / name).write_bytes(content)
        files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
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


def test_files_are_read_with_the_trainer_s_image_and_not_with_that_of_a_mesh() -> None:
    containers = [{"name": "mesh", "image": "proxy:1"}, {"name": "trainer", "image": "trainer:1"}]
    assert trainer_images([{"spec": {"containers": containers}}]) == ["trainer:1"]


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
    assert not (kept.folder / "damaged").exists()
    assert not list(kept.folder.glob(".damaged*"))


def test_a_fetch_goes_on_after_a_cut(kept: Kept) -> None:
    """Three files of 8 MB; the connection breaks in the second."""
    command = ["fetch", "quickstart", "--stage", "dpo", "--out", "cut"]
    with CutOnce(kept.plane.kubeconfig, kept.folder, after=14 << 20) as wire:
        said = kept.run(*command, kubeconfig=wire.kubeconfig)
        assert wire.has_cut
    assert re.search(r"going on from 1\d MB", said)
    assert "25 of 25 MB" in said
    assert contents(kept.folder / "cut") == kept.large


def test_a_fetch_that_was_stopped_goes_on_the_next_time(kept: Kept) -> None:
    command = ["fetch", "quickstart", "--stage", "dpo", "--out", "stopped"]
    process = kept.start(*command)
    wait_until(lambda: on_the_way(kept.folder) > 9 << 20)
    process.send_signal(signal.SIGINT)
    RunHere(kept.folder, os.environ).finish(process, 130)
    assert not (kept.folder / "stopped").exists()
    assert on_the_way(kept.folder) > 9 << 20
    with CutOnce(kept.plane.kubeconfig, kept.folder, after=1 << 40) as wire:
        kept.run(*command, kubeconfig=wire.kubeconfig)
    assert wire.passed < 24 << 20  # all three files take 33 MB as text
    assert on_the_way(kept.folder) == 0
    assert contents(kept.folder / "stopped") == kept.large


def on_the_way(folder: Path) -> int:
    """Bytes."""
    return sum(path.stat().st_size for path in folder.glob(".stopped*/*"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("model-*")}


def test_who_may_not_make_pods_gets_a_report_from_the_status(kept: Kept) -> None:
    plane = kept.plane
    resources = "rlhfjobs.rlhf.dev,pods,pods/log"
    kubeconfig = plane.account_with("reader", kept.namespace, "get,list", resources)
    said = kept.run("report", "quickstart", "--out", "plain.html", kubeconfig=kubeconfig)
    assert "Without the trainers' own records" in said
    assert "held-out pairs" in (kept.folder / "plain.html").read_text()
    said = kept.run("fetch", "quickstart", "--out", "none", code=77, kubeconfig=kubeconfig)
    assert "can-i create pods" in said


def test_with_the_rights_that_the_doctor_checks_a_report_is_whole_and_leaves_no_pod(
    kept: Kept,
) -> None:
    plane, namespace = kept.plane, kept.namespace
    login = plane.account_with("trainee", namespace, "get", "rlhfjobs.rlhf.dev")
    rules = [
        {"apiGroups": [right.group], "resources": [right.resource], "verbs": [right.verb]}
        for right in RIGHTS
    ]
    roles = "rbac.authorization.k8s.io/v1/roles"
    plane.client.patch(roles, "trainee", {"rules": rules}, namespace)
    said = kept.run("report", "quickstart", "--out", "rights.html", kubeconfig=login)
    assert said == "rights.html\n"
    assert "A banana is yellow." in (kept.folder / "rights.html").read_text()
    pods = plane.client.list("v1/pods", namespace)
    assert all("deletionTimestamp" in pod["metadata"] for pod in pods)


def frames(path: str, content: str = "eAFLTEoGAAJNASc=") -> list[str]:
    digest = hashlib.sha256(b"abc").hexdigest()
    return ["total 3", f'file 3 0 "{path}"', f"data {content}", f"end {digest}", "done 1"]


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


def test_a_file_that_no_manifest_names_is_not_fetched_with_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    digest = _commit(tmp_path / "output", {"model.safetensors": WEIGHTS})
    ref = CheckpointRef(uri="output", digest=digest)
    verified(tmp_path / "output", ref)
    (tmp_path / "output/adapter_config.json").write_text("{}")
    with pytest.raises(Failure, match=r"adapter_config\.json is not in the checkpoint's manifest"):
        verified(tmp_path / "output", ref)


def test_lost_lines_are_noticed(tmp_path: Path) -> None:
    whole = frames("checkpoints/job/output/a")
    for lines in (whole[2:], [*whole[:2], *whole[3:]], frames("checkpoints/job/output/a", "xx")):
        with pytest.raises(Failure, match="lost on the way"):
            take(tmp_path, lines)
    assert list(tmp_path.glob("a")) == []
    cut = take(tmp_path, whole[:3])
    assert not cut.is_complete
    assert cut.have() == {"checkpoints/job/output/a": 3}


def test_a_file_goes_on_from_its_beginning_which_is_verified_too(tmp_path: Path) -> None:
    whole = frames("checkpoints/job/output/a")
    rest = ["total 3", 'file 3 3 "checkpoints/job/output/a"', *whole[3:]]
    take(tmp_path, whole[:3])
    assert take(tmp_path, rest).is_complete
    (tmp_path / "a").write_text("xyz")
    with pytest.raises(Failure, match="lost on the way"):
        take(tmp_path, rest)
    assert list(tmp_path.glob("a")) == []
