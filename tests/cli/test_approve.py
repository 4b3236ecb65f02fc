"""rlhfctl approve: what it says, what it refuses, and what a cluster makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import warm
from builders import World, a_job
from cluster.client import PATIENCE
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Script, Scripted, trained
from cluster.nodes import FakeNodes
from cluster_jobs import Jobs, condition, manifest, wait_until
from operator_process import OperatorProcess
from rlhf_cli.commands.approve import described, held_back, result_to_approve
from rlhf_cli.failures import Failure

Object = dict[str, Any]
GATED = a_job().with_spec("stages.reward.gate", {"approval": True})


def refused(world: World, stage: str) -> tuple[int, str]:
    with pytest.raises(Failure) as caught:
        result_to_approve(world.job, stage, "later")
    return caught.value.exit_code, str(caught.value)


def test_what_needs_no_approval_is_refused_with_what_does() -> None:
    world = World(GATED.build()).up_to("reward")
    code, said = refused(world, "sft")
    assert (code, "stages that need one: reward" in said) == (64, True)
    unlocked = a_job().with_spec("stages.reward.gate", {"metric": "eval/accuracy", "min": 0.6})
    code, said = refused(World(unlocked.build()).up_to("reward"), "reward")
    assert (code, "stages that need one: none" in said) == (64, True)
    code, said = refused(world, "rewrad")
    assert (code, "its stages are sft, reward, ppo, dpo" in said) == (64, True)


def test_a_stage_that_nothing_follows_holds_nothing_back() -> None:
    judged = a_job().with_spec("stages.reward.gate", {"approval": True})
    judged.with_spec("stages.ppo.rewards", {"judge": {"http": {"url": "http://judge"}}})
    job = judged.with_spec("stages.ppo.critic", "fresh").build()
    code, said = refused(World(job).finish(), "reward")
    assert (code, "nothing waits for it" in said) == (64, True)


def test_a_stage_without_a_result_may_have_one_later() -> None:
    world = World(GATED.build()).up_to("reward")
    code, said = refused(world, "reward")
    assert (code, "it is Running" in said) == (75, True)


def test_an_edit_that_nobody_has_looked_at_comes_first() -> None:
    world = World(GATED.build()).up_to("reward").succeeds("reward")
    metadata = world.job.metadata.model_copy(update={"generation": 2})
    world.job = world.job.model_copy(update={"metadata": metadata})
    code, said = refused(world, "reward")
    assert (code, "has not looked at the newest version" in said) == (75, True)


def test_a_stage_that_failed_has_nothing_to_approve() -> None:
    world = World(GATED.build()).up_to("reward").fails("reward", 64, message="bad rows")
    world.settle()
    code, said = refused(world, "reward")
    assert (code, "has failed" in said) == (1, True)


def test_the_gate_s_own_metric_is_told_first() -> None:
    gate = {"approval": True, "metric": "train/loss", "max": 1.0}
    world = World(a_job().with_spec("stages.reward.gate", gate).build()).up_to("reward")
    world.succeeds("reward", **{"eval/accuracy": 0.75, "train/loss": 2.0, "lr": 0.1})
    told = list(described(world.job, "reward", result_to_approve(world.job, "reward", "later")))
    assert [line.split()[0] for line in told[1:]] == [
        *("train/loss", "eval/accuracy", "lr", "checkpoint", "digest")
    ]
    assert list(held_back(world.job, "reward")) == [
        "ppo is held back all the same: train/loss of reward is 2, above 1."
    ]


class Gated:
    """Two jobs with a gate: `tiny` comes up to it, `slow` never does."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane, self.namespace = plane, namespace
        self.jobs = Jobs(plane.client, namespace)

    def start(self) -> None:
        for name in ("tiny", "slow"):
            made = manifest(self.namespace, name, nodes=1, stages="reward ppo")
            made["spec"]["stages"]["reward"]["gate"] = {"approval": True}
            self.jobs.create(made)
        self.jobs.wait(lambda job: condition(job, "ApprovalNeeded")[0] == "True")
        self.jobs.wait_running("reward", of="slow")

    def approve(self, *words: str, kubeconfig: Path | None = None) -> tuple[int, str]:
        """Exit code, and all that was said."""
        place = ["--kubeconfig", str(kubeconfig or self.plane.kubeconfig), "-n", self.namespace]
        command = warm.command("rlhf_cli", "approve", *words, *place)
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        said = done.stdout + done.stderr
        assert "Traceback" not in said
        return done.returncode, said

    def account(self, name: str, *verbs: str) -> Path:
        """The kubeconfig of a service account that may do this much with RLHFJobs."""
        if verbs:
            what = "rlhfjobs.rlhf.dev"
            return self.plane.account_with(name, self.namespace, ",".join(verbs), what)
        self.plane.kubectl("create", "serviceaccount", name, "-n", self.namespace)
        return self.plane.kubeconfig_for(name, self.namespace)


def script(pod: Object) -> Script:
    labels = pod["metadata"]["labels"]
    if (labels["rlhf.dev/job"], labels["rlhf.dev/stage"]) == ("slow", "reward"):
        return Script(run_s=None)
    return Script(message=trained(pod, **{"eval/accuracy": 0.7321}))


@pytest.fixture(scope="module")
def gated(
    installed: ControlPlane,
    fake_nodes: FakeNodes,
    module_namespace: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gated]:
    log = tmp_path_factory.mktemp("approve") / "operator.log"
    lease = ("--lease-namespace", module_namespace)
    operator = OperatorProcess(installed.kubeconfig, [module_namespace], log, *lease)
    node = fake_nodes.add({"nvidia.com/gpu": 8})
    operator.start()
    try:
        with Kubelet(installed.kubeconfig, Scripted(script)):
            story = Gated(installed, module_namespace)
            story.start()
            yield story
    finally:
        operator.end()
        print(operator.log()[-8000:])
        fake_nodes.remove(node)


def test_a_result_that_is_not_there_yet_is_not_approved(gated: Gated) -> None:
    code, said = gated.approve("slow", "reward")
    assert (code, "reward of slow has no result yet; it is Running" in said) == (75, True)


def test_a_job_that_is_not_there_is_named_with_its_namespace(gated: Gated) -> None:
    code, said = gated.approve("nobody", "reward")
    assert code == 64
    assert f"there is no RLHFJob nobody in the namespace {gated.namespace}" in said


def test_who_may_not_read_or_approve_is_told_what_to_ask_for(gated: Gated) -> None:
    for name, verbs, missing in (("stranger", (), "get"), ("reader", ("get",), "patch")):
        code, said = gated.approve("tiny", "reward", kubeconfig=gated.account(name, *verbs))
        assert code == 77
        assert f"kubectl auth can-i {missing} rlhfjobs -n {gated.namespace}" in said
    assert gated.jobs.pods("ppo") == []


def test_no_cluster_is_no_traceback(gated: Gated, tmp_path: Path) -> None:
    there = json.loads(gated.plane.kubeconfig.read_text())
    there["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    there["users"][0]["user"] = {"token": "wrong"}
    for text, told in (
        (json.dumps(there), "the API server does not answer"),
        ("nonsense: [", "the kubeconfig cannot be used"),
        ("[]", "the kubeconfig cannot be used"),
        (None, "there is no kubeconfig"),
    ):
        file = tmp_path / "kubeconfig"
        file.write_text(text) if text is not None else file.unlink()
        code, said = gated.approve("tiny", "reward", kubeconfig=file)
        assert (code, told in said) == (69, True), said


def test_a_context_that_is_not_there_is_refused(gated: Gated) -> None:
    code, said = gated.approve("tiny", "reward", "--context", "elsewhere")
    assert (code, "elsewhere" in said) == (69, True)


def test_a_login_that_has_expired_is_told(gated: Gated, tmp_path: Path) -> None:
    there = json.loads(gated.plane.kubeconfig.read_text())
    there["users"][0]["user"] = {"token": "wrong"}
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(there))
    code, said = gated.approve("tiny", "reward", kubeconfig=file)
    assert (code, "log in again" in said) == (77, True)


def test_an_approval_tells_the_result_and_lets_the_next_stage_start(gated: Gated) -> None:
    before = gated.jobs.get()
    digest = before["status"]["stages"]["reward"]["checkpoint"]["digest"]
    approver = gated.account("approver", "get", "patch")
    code, said = gated.approve("tiny", "reward", kubeconfig=approver)
    assert code == 0, said
    for told in ("eval/accuracy", "0.732", digest, "Approved: ppo may start."):
        assert told in said
    gated.jobs.wait_ready()
    assert gated.jobs.get()["metadata"]["generation"] == before["metadata"]["generation"]
    assert gated.jobs.attempts() == {"reward": 1, "ppo": 1}


def test_a_second_approval_changes_nothing(gated: Gated) -> None:
    gated.jobs.wait_ready()
    version = gated.jobs.get()["metadata"]["resourceVersion"]
    code, said = gated.approve("tiny", "reward")
    assert (code, "It is approved already." in said) == (0, True)
    assert gated.approve("tiny", "reward", "-o", "name") == (0, "rlhfjob.rlhf.dev/tiny\n")
    assert gated.jobs.get()["metadata"]["resourceVersion"] == version


def test_an_approval_does_not_cover_a_later_result(gated: Gated) -> None:
    gated.jobs.patch({"spec": {"stages": {"reward": {"epochs": 3}}}})
    wait_until(lambda: gated.jobs.attempts()["reward"] == 2)
    gated.jobs.wait(lambda job: condition(job, "ApprovalNeeded")[0] == "True")
    assert gated.approve("tiny", "reward", "-o", "name") == (0, "rlhfjob.rlhf.dev/tiny\n")
    gated.jobs.wait_ready()
    assert gated.jobs.attempts() == {"reward": 2, "ppo": 2}


def test_a_job_without_a_stage_is_a_wrong_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_cli", "approve", "tiny"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 64
    assert "STAGE" in done.stderr
