"""Pods played from a script, on the real control plane."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cluster.client import PATIENCE
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Script, Scripted
from cluster.kubelet.script import Play
from cluster.kubelet_cases import (
    Object,
    Pods,
    a_job,
    condition,
    is_over,
    is_running,
    phase,
    terminated,
    waiting,
)
from cluster.nodes import FakeNode

MakeNode = Callable[..., FakeNode]


class Scene:
    """A node of the test's own, whose pods do as a script says."""

    def __init__(self, plane: ControlPlane, namespace: str, node: FakeNode) -> None:
        self.client = plane.client
        self.plane = plane
        self.namespace = namespace
        self.node = node

    @contextmanager
    def plays(self, script: Script | Play) -> Iterator[Kubelet]:
        play = script if callable(script) else lambda pod: script
        with Kubelet(self.plane.kubeconfig, Scripted(play), [self.node]) as kubelet:
            yield kubelet

    def job(self, name: str, **given: object) -> Pods:
        pinned = {"nodeSelector": {"kubernetes.io/hostname": self.node.name}}
        made = a_job(name, **{**pinned, **given})  # type: ignore[arg-type]
        return Pods(self.client, self.namespace, self.client.create(made, self.namespace))

    def wait_for_job(self, name: str, kind: str, timeout: float = PATIENCE) -> None:
        def holds(job: Object | None) -> bool:
            return job is not None and condition(job, kind).get("status") == "True"

        self.client.wait_for("batch/v1/jobs", name, holds, self.namespace, timeout=timeout)


@pytest.fixture
def scene(control_plane: ControlPlane, namespace: str, make_node: MakeNode) -> Scene:
    return Scene(control_plane, namespace, make_node(pods=1000))


def test_a_job_whose_pods_succeed_is_complete(scene: Scene) -> None:
    with scene.plays(Script(start_s=0.1, run_s=0.2, message="all is well")):
        pods = scene.job("well", pods=2)
        scene.wait_for_job("well", "Complete")
    for pod in pods.list():
        assert phase(pod) == "Succeeded"
        assert terminated(pod)["message"] == "all is well"
        assert condition(pod, "PodScheduled")["status"] == "True"
        assert condition(pod, "Ready")["reason"] == "PodCompleted"


def test_a_pod_is_pending_then_running_then_over(scene: Scene) -> None:
    with scene.plays(Script(start_s=0.2, run_s=0.2, exit_code=66)):
        *seen, over = scene.job("slow").until_over()
        creating = next(pod for pod in seen if waiting(pod))
        assert phase(creating) == "Pending"
        assert waiting(creating)["reason"] == "ContainerCreating"
        running = next(pod for pod in seen if is_running(pod))
        assert condition(running, "Ready")["status"] == "True"
        assert (phase(over), terminated(over)["exitCode"]) == ("Failed", 66)
        scene.wait_for_job("slow", "Failed")


def test_a_pod_is_killed_for_its_memory(scene: Scene) -> None:
    with scene.plays(Script(run_s=0.1, end="OOMKilled")):
        over = scene.job("big").wait_one(is_over)
    assert terminated(over)["reason"] == "OOMKilled"
    assert terminated(over)["exitCode"] == 137


def test_an_eviction_by_the_kubelet_is_a_disruption(scene: Scene) -> None:
    with scene.plays(Script(run_s=None)) as kubelet:
        pods = scene.job("evicted")
        kubelet.evict(pods.wait_one(is_running))
        over = pods.wait_one(is_over)
    assert (phase(over), over["status"]["reason"]) == ("Failed", "Evicted")
    assert condition(over, "DisruptionTarget")["reason"] == "TerminationByKubelet"


def test_a_script_may_evict_its_own_pod(scene: Scene) -> None:
    with scene.plays(Script(run_s=0.2, end="Evicted")):
        over = scene.job("unlucky").wait_one(is_over)
    assert over["status"]["reason"] == "Evicted"


def test_a_script_may_lose_its_own_node(scene: Scene) -> None:
    with scene.plays(Script(run_s=0.2, end="NodeLost")) as kubelet:
        pods = scene.job("cut-off")
        pods.wait_one(lambda pod: is_running(pod) and scene.node.is_lost)
        kubelet.evict(pods.list()[0])
        time.sleep(0.5)
        assert is_running(pods.list()[0])
        kubelet.recover_node(scene.node.name)
        assert pods.wait_one(is_over)["status"]["reason"] == "Evicted"


def test_an_eviction_by_the_api_keeps_its_condition(scene: Scene) -> None:
    with scene.plays(Script(run_s=None)):
        pods = scene.job("drained", terminationGracePeriodSeconds=5)
        pods.wait_one(is_running)
        scene.node.drain()
        *_, over = pods.until_over()
        assert condition(over, "DisruptionTarget")["reason"] == "EvictionByEvictionAPI"
        assert terminated(over)["exitCode"] == 143


def test_a_deleted_pod_ends_before_it_goes(scene: Scene) -> None:
    """It has a terminal phase and an exit code before the object is gone."""
    seen: list[str] = []
    with scene.plays(Script(run_s=None, term_s=0.5)):
        name = scene.job("deleted").wait_one(is_running)["metadata"]["name"]
        version = scene.client.request("GET", f"/api/v1/namespaces/{scene.namespace}/pods")
        scene.client.delete("v1/pods", name, scene.namespace)
        since = version["metadata"]["resourceVersion"]
        for kind, pod in scene.client.watch("v1/pods", scene.namespace, version=since):
            if pod["metadata"]["name"] == name:
                seen.append(f"{kind} {phase(pod)}")
                if kind == "DELETED":
                    break
    assert seen[0] == "MODIFIED Running"  # the deletion timestamp
    assert "MODIFIED Failed" in seen
    assert seen[-1] == "DELETED Failed"


def test_a_pod_that_ignores_sigterm_is_killed_after_its_grace(scene: Scene) -> None:
    with scene.plays(Script(run_s=None, term_s=None)):
        pods = scene.job("stubborn", terminationGracePeriodSeconds=1)
        name = pods.wait_one(is_running)["metadata"]["name"]
        begun = time.monotonic()
        scene.client.delete("v1/pods", name, scene.namespace)
        *_, over = pods.until_over()
        assert time.monotonic() - begun >= 1
        assert terminated(over)["exitCode"] == 137


def test_a_pod_that_never_starts_can_be_deleted(scene: Scene) -> None:
    with scene.plays(Script(waiting="ImagePullBackOff")):
        pods = scene.job("absent")
        stuck = pods.wait_one(lambda pod: waiting(pod).get("reason") == "ImagePullBackOff")
        scene.client.delete("batch/v1/jobs", "absent", scene.namespace)
        pods.wait(lambda seen: not seen)
    assert phase(stuck) == "Pending"


def test_a_pods_own_deadline_ends_it(scene: Scene) -> None:
    with scene.plays(Script(run_s=None)):
        over = scene.job("late", activeDeadlineSeconds=1).wait_one(is_over)
    assert over["status"]["reason"] == "DeadlineExceeded"
    assert not condition(over, "DisruptionTarget")


def test_a_lost_node_says_nothing_until_it_is_back(
    scene: Scene, make_node: Callable[..., FakeNode]
) -> None:
    with scene.plays(Script(run_s=None, term_s=0.1)) as kubelet:
        pods = scene.job("lost")
        pods.wait_one(is_running)
        make_node()  # Where all nodes are lost, Kubernetes evicts from none.
        kubelet.lose_node(scene.node.name)
        unreachable = pods.wait_one(lambda pod: "deletionTimestamp" in pod["metadata"])
        assert condition(unreachable, "DisruptionTarget")["reason"] == "DeletionByTaintManager"
        time.sleep(1)
        (still,) = pods.list()
        assert phase(still) == "Running"
        assert condition(still, "Ready")["status"] == "False"
        assert condition(still, "ContainersReady")["status"] == "True"
        kubelet.recover_node(scene.node.name)
        pods.wait(lambda seen: not any(is_running(pod) for pod in seen))


def test_many_pods_take_seconds(
    scene: Scene, record_testsuite_property: Callable[[str, object], None]
) -> None:
    with scene.plays(Script(run_s=0.5)):
        begun = time.monotonic()
        scene.job("many", pods=200)
        scene.wait_for_job("many", "Complete", timeout=2 * PATIENCE)
        record_testsuite_property("seconds for 200 pods", round(time.monotonic() - begun, 1))


def test_it_goes_on_when_the_api_server_is_back(scene: Scene) -> None:
    with scene.plays(Script(run_s=1.0)):
        pods = scene.job("away")
        pods.wait_one(is_running)
        scene.plane.stop("kube-apiserver")
        time.sleep(1.5)
        scene.plane.start("kube-apiserver")
        assert phase(pods.wait_one(is_over)) == "Succeeded"
        scene.wait_for_job("away", "Complete")  # the controllers are back, too
