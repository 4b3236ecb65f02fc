"""Each verb where the cluster, the job or the right is not there: a reason, what to do, a code.

Commands run in this process: what ends with a traceback at a terminal is raised here.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from cluster.control_plane import ControlPlane
from cluster_jobs import manifest
from rlhf_cli.failures import DENIED, DONE, UNAVAILABLE, USAGE
from rlhf_cli.main import main

Object = dict[str, Any]
Call = Callable[..., tuple[int, str]]
ON_A_JOB: Final = (
    ["get", "JOB"],
    ["get", "JOB", "-w"],
    ["describe", "JOB"],
    ["status", "JOB"],
    ["watch", "JOB"],
    ["logs", "JOB"],
    ["logs", "JOB", "-f"],
    ["events", "JOB"],
    ["events", "JOB", "-w"],
    ["suspend", "JOB", "--wait"],
    ["resume", "JOB"],
    ["approve", "JOB", "reward"],
    ["retry", "JOB"],
    ["cancel", "JOB"],
    ["cancel", "JOB", "--now"],
    ["delete", "JOB"],
    ["delete", "JOB", "--checkpoints", "--yes"],
    ["report", "JOB"],
    ["plot", "JOB"],
    ["fetch", "JOB"],
    ["chat", "JOB"],
)
ON_A_CLUSTER: Final = (["list"], ["get", "-w"], ["list", "-A"], ["submit", "job.yaml"], ["doctor"])
VERBS: Final = (*ON_A_JOB, *ON_A_CLUSTER)


def titles(words: list[str]) -> str:
    return " ".join(words)


each_verb = pytest.mark.parametrize("words", VERBS, ids=titles)
each_verb_on_a_job = pytest.mark.parametrize("words", ON_A_JOB, ids=titles)


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """A command in an empty folder with a manifest; its exit code, and what it says on stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(a_job()))
    before = signal.getsignal(signal.SIGTERM)

    def run(words: list[str], *place: str, job: str = "nobody") -> tuple[int, str]:
        code = main([job if word == "JOB" else word for word in words] + list(place))
        return code, capsys.readouterr().err

    yield run
    signal.signal(signal.SIGTERM, before)


def a_job() -> Object:
    made = manifest("", "there", stages="sft reward ppo")
    del made["metadata"]["namespace"]
    return made


@pytest.fixture(scope="module")
def kubeconfig(
    installed: ControlPlane, module_namespace: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Of a person without any right in the namespace, where a job is."""
    installed.client.create(a_job(), module_namespace)
    installed.kubectl("create", "serviceaccount", "stranger", "-n", module_namespace)
    return installed.kubeconfig_for("stranger", module_namespace)


@each_verb
def test_no_kubeconfig(words: list[str], call: Call) -> None:
    code, said = call(words, "--kubeconfig", "none.yaml")
    assert (code, said.splitlines()[0]) == (
        UNAVAILABLE,
        "rlhfctl: there is no kubeconfig none.yaml",
    )
    assert "--kubeconfig or --context" in said


@each_verb
def test_no_such_context(words: list[str], installed: ControlPlane, call: Call) -> None:
    place = ["--kubeconfig", str(installed.kubeconfig), "--context", "mars"]
    code, said = call(words, *place)
    assert code == UNAVAILABLE
    assert "mars" in said
    assert "kubectl config get-contexts" in said


@each_verb
def test_nobody_answers(
    words: list[str], installed: ControlPlane, tmp_path: Path, call: Call
) -> None:
    place = elsewhere(installed, tmp_path, lambda server: "https://127.0.0.1:1")
    code, said = call(words, *place)
    assert code == UNAVAILABLE
    assert "does not answer" in said
    assert "kubectl cluster-info" in said


@each_verb
def test_no_custom_resource_definition(
    words: list[str], installed: ControlPlane, tmp_path: Path, call: Call
) -> None:
    """The API server itself answers as to a group that it does not serve."""
    place = elsewhere(installed, tmp_path, lambda server: f"{server}/not-served")
    code, said = call(words, *place)
    if words == ["doctor"]:
        assert code != 0
        return
    assert code == USAGE
    assert "the cluster knows no RLHFJobs" in said
    assert "rlhfctl schema --crd | kubectl apply" in said


@each_verb_on_a_job
def test_no_such_job(
    words: list[str], installed: ControlPlane, module_namespace: str, kubeconfig: Path, call: Call
) -> None:
    code, said = call(words, "--kubeconfig", str(installed.kubeconfig), "-n", module_namespace)
    assert code == USAGE
    assert f"there is no RLHFJob nobody in the namespace {module_namespace}" in said
    assert "rlhfctl list -n" in said


@pytest.mark.parametrize("words", [words for words in VERBS if words != ["doctor"]], ids=titles)
def test_no_right(words: list[str], module_namespace: str, kubeconfig: Path, call: Call) -> None:
    code, said = call(words, "--kubeconfig", str(kubeconfig), "-n", module_namespace, job="there")
    assert code == DENIED
    assert "not allowed: " in said
    assert "kubectl auth can-i" in said


@each_verb_on_a_job
def test_no_run_in_a_directory(words: list[str], tmp_path: Path, call: Call) -> None:
    code, said = call(words, job="./empty")
    assert code == USAGE
    if words[0] == "get":  # which lists all runs below a directory
        assert said == "rlhfctl: there is no directory empty\n"
    else:
        assert said.startswith("rlhfctl: empty holds no run")
        assert "rlhfctl run FILE --dir empty" in said
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/status.yaml").write_text("kind: RLHFJob\nspec: {")
    code, said = call(words, job="./torn")
    if words == ["delete", "JOB"]:  # which needs no status
        assert (code, (tmp_path / "torn").exists()) == (DONE, False)
        return
    assert code == USAGE
    assert "torn/status.yaml cannot be read" in said


def test_a_job_is_described_to_who_may_read_it_and_nothing_else(
    installed: ControlPlane, namespace: str, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    installed.client.create(a_job(), namespace)
    login = installed.account_with("visitor", namespace, "get", "rlhfjobs.rlhf.dev")
    assert main(["describe", "there", "--kubeconfig", str(login), "-n", namespace]) == DONE
    out, said = capsys.readouterr()
    assert "Model:" in out
    for what in ("pods", "events"):
        assert f"Without its {what}: not allowed: " in said


def test_a_log_is_the_trainer_s_also_where_a_mesh_has_added_a_container(
    installed: ControlPlane, namespace: str, call: Call
) -> None:
    """No node has the pod, whose log is empty for the API server then."""
    installed.client.create(a_job(), namespace)
    labels = {"rlhf.dev/job": "there", "rlhf.dev/stage": "sft", "rlhf.dev/attempt": "1"}
    containers = [{"name": name, "image": "a:1"} for name in ("mesh", "trainer")]
    pod = {"name": "there-sft-1-0", "labels": labels}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": pod, "spec": {"containers": containers}}
    installed.client.create(body, namespace)
    words = ["logs", "JOB", "--stage", "sft"]
    place = ["--kubeconfig", str(installed.kubeconfig), "-n", namespace]
    assert call(words, *place, job="there") == (DONE, "")


def elsewhere(plane: ControlPlane, folder: Path, change: Callable[[str], str]) -> tuple[str, str]:
    """The flags for the same login at another address."""
    config = copy.deepcopy(yaml.safe_load(plane.kubeconfig.read_text()))
    for item in config["clusters"]:
        item["cluster"]["server"] = change(item["cluster"]["server"])
    file = folder / "elsewhere.yaml"
    file.write_text(yaml.safe_dump(config))
    return "--kubeconfig", str(file)
