"""It is a real control plane: it authorises, schedules, makes volumes, and dies with its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import urllib3
from kubernetes.client import ApiException

from cluster.client import PATIENCE
from cluster.control_plane import ControlPlane
from cluster.modules import KUBERNETES
from cluster.nodes import OUT_OF_SERVICE, FakeNode
from cluster.programs import Group, Program, ProgramError

MakeNode = Callable[..., FakeNode]
GANG = "scheduling.k8s.io/v1alpha2/podgroups"


def pod(name: str, **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "image": "none", "resources": spec.pop("resources", {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container], **spec},
    }


def gpus(count: int) -> dict[str, Any]:
    return {"limits": {"nvidia.com/gpu": count}}


def is_bound(seen: dict[str, Any] | None) -> bool:
    return bool(seen and seen["spec"].get("nodeName"))


def condition(seen: dict[str, Any] | None, kind: str) -> dict[str, str]:
    conditions = (seen or {}).get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == kind), {})


def test_it_is_the_kubernetes_that_go_mod_pins(control_plane: ControlPlane) -> None:
    assert control_plane.client.request("GET", "/version")["gitVersion"] == f"v{KUBERNETES.version}"


def test_rbac_refuses_a_service_account_without_rights(
    control_plane: ControlPlane, namespace: str
) -> None:
    powerless = control_plane.client_for("default", namespace)
    with pytest.raises(ApiException, match="cannot list resource") as refused:
        powerless.list("v1/pods", namespace)
    assert refused.value.status == 403

    control_plane.kubectl(
        "create", "role", "reader", "--verb=list", "--resource=pods", "-n", namespace
    )
    control_plane.kubectl(
        *("create", "rolebinding", "reader", "--role=reader", "-n", namespace),
        f"--serviceaccount={namespace}:default",
    )
    assert powerless.list("v1/pods", namespace) == []


def test_a_service_accounts_token_is_reviewed(control_plane: ControlPlane, namespace: str) -> None:
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": ["rlhf"], "expirationSeconds": 600},
    }
    client = control_plane.client
    token = client.post("v1/serviceaccounts", "default", "token", request, namespace)["status"][
        "token"
    ]

    def review(audience: str) -> dict[str, Any]:
        reviewed = client.create(
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "metadata": {},
                "spec": {"token": token, "audiences": [audience]},
            }
        )
        return dict(reviewed["status"])

    assert review("rlhf")["user"]["username"] == f"system:serviceaccount:{namespace}:default"
    assert not review("another").get("authenticated")


def test_a_pod_is_bound_to_the_node_with_its_device_and_zone(
    control_plane: ControlPlane, namespace: str, make_node: MakeNode
) -> None:
    make_node({"nvidia.com/gpu": 8}, labels={"topology.kubernetes.io/zone": "a"})
    make_node({"nvidia.com/mig-3g.40gb": 2}, labels={"topology.kubernetes.io/zone": "b"})
    ascend = make_node({"huawei.com/Ascend910": 8}, labels={"topology.kubernetes.io/zone": "b"})
    amd = make_node({"amd.com/gpu": 4}, taints=[{"key": "amd.com/gpu", "effect": "NoSchedule"}])
    client = control_plane.client
    client.create(
        pod(
            "wants-ascend",
            resources={"limits": {"huawei.com/Ascend910": 8}},
            nodeSelector={"topology.kubernetes.io/zone": "b"},
        ),
        namespace,
    )
    client.create(
        pod(
            "tolerates-amd",
            resources={"limits": {"amd.com/gpu": 4}},
            tolerations=[{"key": "amd.com/gpu", "operator": "Exists"}],
        ),
        namespace,
    )
    client.create(pod("does-not", resources={"limits": {"amd.com/gpu": 1}}), namespace)

    for name, node in [("wants-ascend", ascend), ("tolerates-amd", amd)]:
        bound = client.wait_for("v1/pods", name, is_bound, namespace)
        assert bound
        assert bound["spec"]["nodeName"] == node.name
    unbound = client.wait_for(
        "v1/pods", "does-not", lambda seen: condition(seen, "PodScheduled") != {}, namespace
    )
    assert condition(unbound, "PodScheduled")["reason"] == "Unschedulable"


def test_a_watch_tells_what_is_made_changed_and_deleted(
    control_plane: ControlPlane, namespace: str
) -> None:
    client = control_plane.client
    events = client.watch("v1/configmaps", namespace, seconds=30)
    told = (kind for kind, seen in events if seen["metadata"]["name"] == "mine")
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}}
    client.create(config_map, namespace)
    client.apply(config_map | {"data": {"key": "value"}}, namespace)
    client.delete("v1/configmaps", "mine", namespace)
    assert [next(told) for _ in range(3)] == ["ADDED", "MODIFIED", "DELETED"]


def test_a_gang_is_bound_as_a_whole_once_there_is_room(
    control_plane: ControlPlane, namespace: str, make_node: MakeNode
) -> None:
    node = make_node({"nvidia.com/gpu": 8})
    client = control_plane.client
    client.create(
        {
            "apiVersion": "scheduling.k8s.io/v1alpha2",
            "kind": "PodGroup",
            "metadata": {"name": "gang"},
            "spec": {"schedulingPolicy": {"gang": {"minCount": 3}}},
        },
        namespace,
    )
    for rank in range(3):
        group = {"podGroupName": "gang"}
        client.create(pod(f"rank-{rank}", resources=gpus(4), schedulingGroup=group), namespace)

    waiting = client.wait_for(
        GANG, "gang", lambda seen: condition(seen, "PodGroupScheduled") != {}, namespace
    )
    assert condition(waiting, "PodGroupScheduled")["status"] == "False"
    assert condition(waiting, "PodGroupScheduled")["reason"] == "Unschedulable"
    assert not any(map(is_bound, client.list("v1/pods", namespace)))

    node.resize({"nvidia.com/gpu": 12})
    for rank in range(3):
        assert client.wait_for("v1/pods", f"rank-{rank}", is_bound, namespace)


def test_a_claim_gets_a_volume_of_the_default_class(
    control_plane: ControlPlane, namespace: str
) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "checkpoints"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    client = control_plane.client
    client.create(claim, namespace)
    bound = client.wait_for(
        "v1/persistentvolumeclaims",
        "checkpoints",
        lambda seen: bool(seen and seen["status"].get("phase") == "Bound"),
        namespace,
    )
    assert bound
    volume = client.get("v1/persistentvolumes", bound["spec"]["volumeName"])
    assert Path(volume["spec"]["hostPath"]["path"]).is_dir()


def test_a_lost_node_loses_its_pods_when_out_of_service_and_can_return(
    control_plane: ControlPlane, namespace: str, make_node: MakeNode
) -> None:
    node = make_node()
    client = control_plane.client
    client.create(pod("worker"), namespace)
    client.wait_for("v1/pods", "worker", is_bound, namespace)
    make_node()  # Where all nodes are lost, Kubernetes takes it for a fault of its own and waits.

    node.lose()
    client.wait_for(
        "v1/nodes", node.name, lambda seen: condition(seen, "Ready")["status"] == "Unknown"
    )
    doomed = client.wait_for(
        "v1/pods",
        "worker",
        lambda seen: bool(seen and "deletionTimestamp" in seen["metadata"]),
        namespace,
    )
    assert condition(doomed, "DisruptionTarget")["reason"] == "DeletionByTaintManager"

    node.take_out_of_service()
    client.wait_for("v1/pods", "worker", lambda seen: seen is None, namespace)

    node.untaint(OUT_OF_SERVICE)
    node.recover()
    client.wait_for(
        "v1/nodes", node.name, lambda seen: bool(seen and not seen["spec"].get("taints"))
    )


def test_a_drain_evicts_every_pod_of_the_node_and_lets_none_in(
    control_plane: ControlPlane, namespace: str, make_node: MakeNode
) -> None:
    node = make_node()
    client = control_plane.client
    client.create(pod("worker"), namespace)
    client.wait_for("v1/pods", "worker", is_bound, namespace)

    node.drain()

    evicted = client.get("v1/pods", "worker", namespace)
    assert "deletionTimestamp" in evicted["metadata"]
    assert condition(evicted, "DisruptionTarget")["reason"] == "EvictionByEvictionAPI"
    client.create(pod("late"), namespace)
    late = client.wait_for(
        "v1/pods", "late", lambda seen: condition(seen, "PodScheduled") != {}, namespace
    )
    assert condition(late, "PodScheduled")["status"] == "False"


def test_the_api_server_can_go_and_come_back(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.stop("kube-apiserver", grace=0)
    with pytest.raises(urllib3.exceptions.HTTPError):
        control_plane.client.get("v1/namespaces", namespace)
    restart = threading.Timer(0.5, control_plane.start, ["kube-apiserver"])
    restart.start()
    assert control_plane.client.wait_for("v1/namespaces", namespace, lambda seen: seen is not None)
    restart.join()
    assert control_plane.client_for("default", namespace).request("GET", "/version")


@pytest.mark.parametrize("why", ["start-service-ip-repair-controllers", "a flag it has not"])
def test_an_api_server_that_a_busy_machine_ends_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    plane, group = ControlPlane(tmp_path, tmp_path), Group()
    ends = f"test -e again && touch ready && exec sleep 60; touch again; echo {why}; exit 1"
    script = ["sh", "-c", f"cd {tmp_path}; {ends}"]
    plane.programs = {
        name: Program(group, tmp_path / name, script)
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
    }
    monkeypatch.setattr(plane, "_is_ready", (tmp_path / "ready").exists)
    try:
        if why.startswith("start"):
            plane.start("kube-apiserver")
            plane.check()
        else:
            with pytest.raises(ProgramError, match=why):
                plane.start("kube-apiserver")
    finally:
        group.close()


def test_it_goes_on_after_it_stood_still(control_plane: ControlPlane, namespace: str) -> None:
    ready = ("get", "--raw", "/readyz", "--request-timeout=1s")
    control_plane.pause()
    assert control_plane.kubectl(*ready, check=False) != "ok"
    control_plane.resume()
    client = control_plane.client
    client.create(pod("worker"), namespace)
    assert client.wait_for(
        "v1/pods", "worker", lambda seen: condition(seen, "PodScheduled") != {}, namespace
    )


def test_without_gang_scheduling_it_serves_no_pod_groups(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    with ControlPlane(control_plane.binaries, tmp_path, gang_scheduling=False) as plain:
        groups = plain.client.request("GET", "/apis/scheduling.k8s.io")["versions"]
    assert [one["version"] for one in groups] == ["v1"]


STARTS_ONE_AND_SLEEPS = """
import sys, time
from pathlib import Path
from cluster.control_plane import ControlPlane

with ControlPlane(Path(sys.argv[1]), Path(sys.argv[2])) as running:
    print(running.group, flush=True)
    time.sleep(600)
"""


def test_nothing_is_left_of_it_after_its_owner_was_killed(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", STARTS_ONE_AND_SLEEPS, control_plane.binaries, tmp_path],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout
    group = int(owner.stdout.readline())
    assert {"etcd", "kube-apiserver", "kube-scheduler"} <= set(living(group))

    owner.send_signal(signal.SIGKILL)
    owner.wait()

    deadline = time.monotonic() + PATIENCE
    while living(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert living(group) == []


def living(group: int) -> list[str]:
    """The programs of a process group that are more than a status to be collected."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,comm="], capture_output=True, text=True)
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [name for found, state, name in rows if int(found) == group and state[0] != "Z"]
