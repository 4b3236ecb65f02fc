"""The guide to clusters and README.md: each command is run, in order, and does what they say."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.client import PATIENCE
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Script, Scripted, trained
from cluster.nodes import FakeNodes
from cluster.programs import free_ports
from cluster_jobs import Jobs, condition
from guide_commands import REPOSITORY, Page, Shell

Object = dict[str, Any]
PAGE, README = Page("docs/guides/on-a-cluster.md"), Page("README.md")
NAMESPACE, NAME = "research", "assistant"


class Reader:
    """Somebody at a terminal. Pods are played, and `sft` runs until it is let go."""

    def __init__(self, plane: ControlPlane, shell: Shell) -> None:
        self.jobs = Jobs(plane.client, NAMESPACE)
        self._shell = shell
        self.has_read: list[str] = []
        self.sft_goes_on = True
        self.ppo_is_broken = False

    def reading(self, title: str, page: Page = PAGE) -> Iterator[str]:
        """Runs the commands of a section, one at a time; what each of them said."""
        self.has_read.append(title)
        for command in page.commands(title):
            yield self._shell.run(command)

    def read(self, title: str, page: Page = PAGE) -> list[str]:
        """Runs all commands of a section."""
        return list(self.reading(title, page))

    def save(self, name: str, text: str) -> None:
        (self._shell.directory / name).write_text(text)

    def play(self, pod: Object) -> Script:
        stage = pod["metadata"]["labels"]["rlhf.dev/stage"]
        if stage == "sft" and self.sft_goes_on:
            return Script(run_s=None)
        if stage == "ppo" and self.ppo_is_broken:
            return Script(exit_code=64)
        return Script(message=trained(pod, **{"eval/accuracy": 0.73}))

    def status(self) -> Object:
        found: Object = self.jobs.get(NAME)["status"]
        return found

    def attempts(self) -> dict[str, int]:
        return self.jobs.attempts(NAME)

    def wait(self, what: Callable[[Object | None], bool]) -> Object:
        return self.jobs.wait(what, NAME)

    def wait_for_attempt(self, stage: str, number: int) -> None:
        def is_running(job: Object | None) -> bool:
            found = (job or {}).get("status", {}).get("stages", {}).get(stage, {})
            return (found.get("attempt"), found.get("phase")) == (number, "Running")

        self.wait(is_running)


@pytest.fixture
def reader(installed: ControlPlane, fake_nodes: FakeNodes, tmp_path: Path) -> Iterator[Reader]:
    shell = Shell(tmp_path, installed.kubeconfig, installed.binaries)
    health, progress = free_ports(2)
    shell.environment |= {"RLHF_HEALTH_PORT": str(health), "RLHF_PROGRESS_PORT": str(progress)}
    reader = Reader(installed, shell)
    nodes = [fake_nodes.add({"nvidia.com/gpu": 8}) for _ in range(2)]
    try:
        with Kubelet(installed.kubeconfig, Scripted(reader.play)):
            yield reader
    finally:
        shell.close()
        print(shell.log.read_text()[-8000:] if shell.log.exists() else "")
        leave(installed)
        for node in nodes:
            fake_nodes.remove(node)


def leave(plane: ControlPlane) -> None:
    """The next reader makes the namespaces again."""
    spaces = (NAMESPACE, "rlhf-system")
    for name in spaces:
        plane.client.delete("v1/namespaces", name)
    plane.client.delete_all("v1/pods", NAMESPACE, grace=0)
    for name in spaces:
        plane.client.wait_for("v1/namespaces", name, lambda item: item is None)


def datasets() -> Object:
    """The claim that the page takes for granted."""
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    kind = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
    return {**kind, "metadata": {"name": "datasets"}, "spec": spec}


def test_each_command_of_the_guide_does_what_it_says(reader: Reader) -> None:
    reader.read("Install")
    reader.jobs.client.create(datasets(), NAMESPACE)

    reader.save("job.yaml", PAGE.manifest("Apply"))
    assert "is valid" in reader.read("Apply")[0]
    reader.wait_for_attempt("sft", 1)

    listed, watched, described, events, pods, _ = reader.read("Watch")
    assert "PROGRESS" in listed
    assert "sft 1/3" in listed
    assert "CHECKPOINT" in watched
    assert "Reconciling" in described
    assert "StageStarted" in events
    assert f"{NAME}-sft-1-0" in pods

    doing, scheduled, gang = reader.read("Why it waits")
    assert doing == "sft: Training"
    assert "Every pod of sft has its place" in scheduled
    assert '"gang":"native"' in gang

    hashes = {1: reader.status()["stages"]["sft"]["hash"]}
    for attempt, said in enumerate(reader.reading("Edit"), start=2):
        assert "patched" in said
        reader.wait_for_attempt("sft", attempt)
        hashes[attempt] = reader.status()["stages"]["sft"]["hash"]
    assert hashes[1] == hashes[2] != hashes[3]

    reader.read("Suspend and resume")
    reader.wait_for_attempt("sft", 4)
    assert reader.status()["stages"]["sft"]["hash"] == hashes[3]
    assert reader.status()["stages"]["sft"].get("faults", 0) == 0

    reader.sft_goes_on = False
    reader.jobs.patch({"spec": {"stages": {"sft": {"retry": {"deadlineSeconds": 3600}}}}}, NAME)
    _, approved, _ = reader.read("Approve")
    assert "Approved: ppo may start." in approved
    assert reader.attempts() == {"sft": 5, "reward": 1, "ppo": 1}

    reader.read("Change a finished job")
    assert reader.attempts() == {"sft": 5, "reward": 1, "ppo": 2}

    reader.ppo_is_broken = True
    reader.jobs.patch({"spec": {"stages": {"ppo": {"kl": {"coef": 0.1}}}}}, NAME)
    reader.wait(lambda job: condition(job, "Stalled")[0] == "True")
    reader.ppo_is_broken = False
    assert reader.read("Retry")[0] == "3"
    assert reader.attempts() == {"sft": 5, "reward": 1, "ppo": 4}

    _, claim, _ = reader.read("Delete")
    assert "Bound" in claim
    deadline = time.monotonic() + PATIENCE
    while reader.jobs.children("batch/v1/jobs") or reader.jobs.children("v1/pods"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert reader.has_read == [title for title in PAGE.titles if PAGE.commands(title)]


def test_the_commands_of_the_readme_lead_from_an_empty_cluster_to_a_model(reader: Reader) -> None:
    reader.save("job.yaml", PAGE.manifest("Apply"))
    reader.sft_goes_on = False
    commands = reader.reading("On a cluster", README)
    said = [next(commands), next(commands)]
    reader.jobs.client.create(datasets(), NAMESPACE)
    said += commands
    assert any("Approved: ppo may start." in text for text in said)
    assert "deleted" in said[-1]


def test_the_place_of_the_checkpoints_is_immutable(installed: ControlPlane, namespace: str) -> None:
    assert "refused: `is immutable`" in PAGE.section("Edit")
    installed.client.create(yaml.safe_load(PAGE.manifest("Apply")), namespace)
    change = '{"spec": {"checkpoints": {"claim": {"storageClass": "other"}}}}'
    words = ("patch", "rlhfjob", NAME, "-n", namespace, "--type=merge", "-p", change)
    with pytest.raises(RuntimeError, match="is immutable"):
        installed.kubectl(*words)


def test_links_of_the_guide_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGE.text):
        assert (REPOSITORY / "docs/guides" / target).exists(), target
