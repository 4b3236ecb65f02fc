"""Pods run as processes, on the real control plane: what they find, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.client import PATIENCE, Client
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Processes
from cluster.kubelet_cases import (
    HOME,
    Pods,
    a_job,
    a_service,
    condition,
    is_over,
    is_running,
    phase,
    terminated,
    waiting,
)
from cluster.nodes import FakeNode

MEET = """
import socket, sys
index, host, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if index == 0:
    with socket.create_server((host, port)) as server:
        connection, _ = server.accept()
        print("met", connection.recv(100).decode())
else:
    for attempt in range(1000):
        try:
            with socket.create_connection((host, port)) as connection:
                connection.sendall(b"pod 1")
            break
        except OSError:
            import time; time.sleep(0.1)
    else:
        sys.exit("nobody is there")
"""
SAVE = "trap 'echo saved; exit 143' TERM; echo ready; while true; do sleep 0.05; done"
NAP = f"300.{os.getpid()}"
"""Seconds, by which a process that sleeps is known; of no other run of the tests."""
STUBBORN = "trap '' TERM; echo ready; while true; do sleep 0.05; done"


class Bench:
    def __init__(self, client: Client, namespace: str, node: FakeNode, kubelet: Kubelet) -> None:
        self.client = client
        self.namespace = namespace
        self.node = node
        self.kubelet = kubelet

    def run(self, name: str, *command: str, **given: Any) -> Pods:
        spec = {"nodeSelector": {"kubernetes.io/hostname": self.node.name}, **given}
        made = self.client.create(a_job(name, *command, **spec), self.namespace)
        return Pods(self.client, self.namespace, made)

    def shell(self, name: str, text: str, **given: Any) -> Pods:
        return self.run(name, "bash", "-c", text, **given)

    def make(self, kind: str, name: str, **content: Any) -> None:
        self.client.create(
            {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, **content},
            self.namespace,
        )

    def wait_for_log(self, pods: Pods, text: str) -> dict[str, Any]:
        return pods.wait_one(lambda pod: is_running(pod) and text in self.kubelet.log(pod))


@pytest.fixture
def bench(
    control_plane: ControlPlane, namespace: str, make_node: Callable[..., FakeNode], tmp_path: Path
) -> Iterator[Bench]:
    node = make_node()
    with Kubelet(control_plane.kubeconfig, Processes(tmp_path), [node]) as kubelet:
        yield Bench(control_plane.client, namespace, node, kubelet)


def test_two_pods_of_a_job_meet_by_host_name(bench: Bench) -> None:
    bench.client.create(a_service("meet", 29500), bench.namespace)
    pods = bench.run(
        "meet", "python", "-c", MEET, "$(JOB_COMPLETION_INDEX)", "meet-0.meet", "29500", pods=2
    )
    over = pods.wait(lambda seen: len(seen) == 2 and all(map(is_over, seen)))
    assert [phase(pod) for pod in over] == ["Succeeded", "Succeeded"]
    assert bench.kubelet.log(over[0]) == "met pod 1\n"


def test_volumes_and_variables_are_what_the_pod_says(bench: Bench) -> None:
    bench.make("ConfigMap", "settings", data={"a.yaml": "x: 1", "b.yaml": "y"})
    bench.make("Secret", "keys", stringData={"key": "s3cret"})
    bench.make(
        "PersistentVolumeClaim",
        "store",
        spec={"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    )
    volumes = [
        {"name": "config", "configMap": {"name": "settings"}},
        {"name": "keys", "secret": {"secretName": "keys", "items": [{"key": "key", "path": "k"}]}},
        {"name": "store", "persistentVolumeClaim": {"claimName": "store"}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    mounts = [
        {"name": "config", "mountPath": f"{HOME}/config"},
        {"name": "keys", "mountPath": f"{HOME}/keys", "readOnly": True},
        {"name": "store", "mountPath": f"{HOME}/store", "subPath": "inside"},
        {"name": "tmp", "mountPath": f"{HOME}/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    name_field = {"fieldRef": {"fieldPath": "metadata.name"}}
    variables = [
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "key"}}},
        {"name": "POD", "valueFrom": name_field},
        {"name": "BOTH", "value": "$(POD)/$(KEY)/$(NOT_THERE)"},
        {"name": "TMPDIR", "value": f"{HOME}/tmp"},
    ]
    tell = 'cat config/a.yaml keys/k; echo " $BOTH $JOB_COMPLETION_INDEX"; cat config/b.yaml'
    keep = 'echo kept > store/file; test -d "$TMPDIR" && touch "$TMPDIR/x" tmp/x'
    pods = bench.shell(
        "mounts", f"{tell} && {keep}", volumes=volumes,
        container={"volumeMounts": mounts, "env": variables},
    )  # fmt: skip
    over = pods.wait_one(is_over)
    name = over["metadata"]["name"]
    assert bench.kubelet.log(over) == f"x: 1s3cret {name}/s3cret/$(NOT_THERE) 0\ny"
    assert phase(over) == "Succeeded"
    assert (volume_of(bench, "store") / "inside" / "file").read_text() == "kept\n"


def volume_of(bench: Bench, claim: str) -> Path:
    bound = bench.client.get("v1/persistentvolumeclaims", claim, bench.namespace)
    volume = bench.client.get("v1/persistentvolumes", bound["spec"]["volumeName"])
    return Path(volume["spec"]["hostPath"]["path"])


def test_the_token_is_the_pods_own_and_for_one_audience(bench: Bench) -> None:
    source = {"audience": "rlhf.dev/progress", "expirationSeconds": 3600, "path": "token"}
    volume = {"name": "token", "projected": {"sources": [{"serviceAccountToken": source}]}}
    over = bench.shell(
        "token", "cat token/token; stat -c ' %a' token/token", volumes=[volume],
        container={"volumeMounts": [{"name": "token", "mountPath": f"{HOME}/token"}]},
    ).wait_one(is_over)  # fmt: skip
    token, mode = bench.kubelet.log(over).split()
    assert mode == "600"
    assert not review(bench, token, "https://kubernetes.default.svc").get("authenticated")
    seen = review(bench, token, "rlhf.dev/progress")
    assert seen["authenticated"] is True
    assert seen["user"]["username"] == f"system:serviceaccount:{bench.namespace}:default"
    names = seen["user"]["extra"]["authentication.kubernetes.io/pod-name"]
    assert names == [over["metadata"]["name"]]


def review(bench: Bench, token: str, audience: str) -> dict[str, Any]:
    asked = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [audience]},
    }
    status: dict[str, Any] = bench.client.request(
        "POST", "/apis/authentication.k8s.io/v1/tokenreviews", asked
    )["status"]
    return status


@pytest.mark.parametrize(
    ("text", "code", "reason", "message"),
    [
        ("echo hello", 0, "Completed", ""),
        ("echo last words; exit 64", 64, "Error", "last words"),
        ("echo log; echo why > termination/message.json; exit 75", 75, "Error", "why\n"),
        ("echo well > termination/message.json", 0, "Completed", "well\n"),
        ("kill -9 $BASHPID", 137, "Error", ""),
    ],
)
def test_exit_code_and_message(
    bench: Bench, text: str, code: int, reason: str, message: str
) -> None:
    over = bench.shell("end", text).wait_one(is_over)
    end = terminated(over)
    assert (end["exitCode"], end["reason"], end.get("message", "")) == (code, reason, message)
    assert end["startedAt"] <= end["finishedAt"]


def test_of_a_long_message_the_last_4096_bytes_are_kept(bench: Bench) -> None:
    write = "python3 -c \"print('a' * 3000 + 'b' * 3000, end='')\" > termination/message.json"
    assert terminated(bench.shell("long", write).wait_one(is_over))["message"] == (
        "a" * 1096 + "b" * 3000
    )


def test_a_deleted_pod_gets_its_grace_period_to_save(bench: Bench) -> None:
    pods = bench.shell("saves", SAVE)
    name = bench.wait_for_log(pods, "ready")["metadata"]["name"]
    bench.client.delete("v1/pods", name, bench.namespace)
    *_, over = pods.until_over()
    assert terminated(over)["exitCode"] == 143
    assert terminated(over)["message"] == "ready\nsaved"
    bench.client.wait_for("v1/pods", name, lambda pod: pod is None, bench.namespace)


def test_a_pod_that_does_not_end_is_killed_after_its_grace_period(bench: Bench) -> None:
    pods = bench.shell("stubborn", STUBBORN, terminationGracePeriodSeconds=600)
    name = bench.wait_for_log(pods, "ready")["metadata"]["name"]
    begun = time.monotonic()
    bench.client.delete("v1/pods", name, bench.namespace)
    bench.client.delete("v1/pods", name, bench.namespace, grace=1)
    *_, over = pods.until_over()
    assert terminated(over)["exitCode"] == 137
    assert 1 <= time.monotonic() - begun < PATIENCE


def test_a_rank_that_is_killed_takes_its_pod_along(bench: Bench) -> None:
    """As torchrun does: the launcher ends with the code of the rank that failed."""
    rank = "bash -c 'echo ready $RANK; sleep 60; true'"
    ranks = f"RANK=0 {rank} & RANK=1 {rank} & wait -n; exit $?"
    pods = bench.shell("ranks", ranks)
    pod = bench.wait_for_log(pods, "ready 1")
    with pytest.raises(LookupError, match="rank 2"):
        bench.kubelet.kill(pod, rank=2)
    bench.kubelet.kill(pod, rank=1)
    assert terminated(pods.wait_one(is_over))["exitCode"] == 137


def test_a_pod_without_memory_and_a_killed_one_differ_in_the_reason(bench: Bench) -> None:
    killed, big = bench.shell("killed", SAVE), bench.shell("big", SAVE)
    bench.kubelet.kill(bench.wait_for_log(killed, "ready"))
    bench.kubelet.oom(bench.wait_for_log(big, "ready"))
    ends = [terminated(pods.wait_one(is_over)) for pods in (killed, big)]
    assert [(end["exitCode"], end["reason"]) for end in ends] == [
        (137, "Error"),
        (137, "OOMKilled"),
    ]


def test_an_evicted_pod_is_killed_at_once(bench: Bench) -> None:
    pods = bench.shell("evicted", STUBBORN)
    bench.kubelet.evict(bench.wait_for_log(pods, "ready"))
    over = pods.wait_one(is_over)
    assert over["status"]["reason"] == "Evicted"
    assert terminated(over)["exitCode"] == 137
    assert condition(over, "DisruptionTarget")["status"] == "True"


def test_a_variable_waits_for_its_secret(bench: Bench) -> None:
    reference = {"secretKeyRef": {"name": "later", "key": "key"}}
    pods = bench.shell(
        "waits", "echo $KEY", container={"env": [{"name": "KEY", "valueFrom": reference}]}
    )
    stuck = pods.wait_one(lambda pod: waiting(pod).get("reason") == "CreateContainerConfigError")
    assert waiting(stuck)["message"] == 'secret "later" not found'
    assert phase(stuck) == "Pending"
    bench.make("Secret", "later", stringData={"key": "here"})
    assert bench.kubelet.log(pods.wait_one(is_over)) == "here\n"


def test_a_volume_waits_for_its_config_map(bench: Bench) -> None:
    pods = bench.shell(
        "waits", "cat config/a", volumes=[{"name": "config", "configMap": {"name": "later"}}],
        container={"volumeMounts": [{"name": "config", "mountPath": f"{HOME}/config"}]},
    )  # fmt: skip
    stuck = pods.wait_one(lambda pod: bool(waiting(pod)))
    assert waiting(stuck)["reason"] == "ContainerCreating"
    wait_until(lambda: bool(failed_mounts(bench)))
    bench.make("ConfigMap", "later", data={"a": "here"})
    assert bench.kubelet.log(pods.wait_one(is_over)) == "here"
    assert failed_mounts(bench) == ['MountVolume.SetUp failed: configmap "later" not found']


def failed_mounts(bench: Bench) -> list[str]:
    events = bench.client.list("v1/events", bench.namespace)
    return [event["message"] for event in events if event["reason"] == "FailedMount"]


def test_processes_on_a_lost_node_go_on(bench: Bench) -> None:
    pods = bench.shell(
        "lost", "echo ready; sleep 3; echo done; echo '{}' > termination/message.json"
    )
    pod = bench.wait_for_log(pods, "ready")
    bench.kubelet.lose_node(bench.node.name)
    wait_until(lambda: "done" in bench.kubelet.log(pod))
    time.sleep(0.5)
    assert is_running(pods.list()[0])
    bench.kubelet.recover_node(bench.node.name)
    assert json.loads(terminated(pods.wait_one(is_over))["message"]) == {}


def test_what_was_given_up_ends_when_its_node_is_back(bench: Bench) -> None:
    """As after the out-of-service taint: the object is gone before the kubelet hears of it."""
    template = a_job("none", "sleep", NAP)["spec"]["template"]
    template["spec"] |= {"nodeName": bench.node.name, "terminationGracePeriodSeconds": 1}
    bench.make("Pod", "given-up", spec=template["spec"])
    wait_until(lambda: is_process(NAP))
    bench.kubelet.lose_node(bench.node.name)
    bench.client.delete("v1/pods", "given-up", bench.namespace, grace=0)
    assert bench.client.find("v1/pods", "given-up", bench.namespace) is None
    time.sleep(1.5)
    assert is_process(NAP)
    bench.kubelet.recover_node(bench.node.name)
    wait_until(lambda: not is_process(NAP))


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)


def is_process(argument: str) -> bool:
    """Whether a process has this argument."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if argument.encode() in file.read_bytes().split(b"\0"):
                return True
    return False


def test_nothing_outlives_the_kubelet_and_the_next_one_says_so(
    control_plane: ControlPlane, namespace: str, make_node: Callable[..., FakeNode], tmp_path: Path
) -> None:
    node, runtime = make_node(), Processes(tmp_path)
    with Kubelet(control_plane.kubeconfig, runtime, [node]) as kubelet:
        pods = Bench(control_plane.client, namespace, node, kubelet).run("left", "sleep", NAP)
        wait_until(lambda: is_process(NAP))
        pods.wait_one(is_running)
    assert not is_process(NAP)
    with Kubelet(control_plane.kubeconfig, runtime, [node]):
        over = pods.wait_one(is_over)
    assert terminated(over)["reason"] == "ContainerStatusUnknown"
