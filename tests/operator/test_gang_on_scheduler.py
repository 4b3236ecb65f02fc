"""The real scheduler places rendered gangs: as a whole, and in one domain."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import pytest
from builders import JobBuilder
from cluster.client import PATIENCE, Client
from cluster.control_plane import ControlPlane
from cluster.nodes import FakeNode
from rendering import rendered
from rlhf_operator.render import Platform
from test_gang import NATIVE
from test_render_security import on_a_cluster

ZONE = "topology.kubernetes.io/zone"
PLATFORM = Platform(served=frozenset([NATIVE["1.36"]]))
MakeNode = Callable[..., FakeNode]


def gang_of_three(**resources: Any) -> JobBuilder:
    """Three pods with four devices each, whose data are on the job's own claim."""
    job = on_a_cluster(checkpoints={"claim": {"size": "1Gi"}})
    for stage in ("sft", "reward", "ppo", "dpo"):
        job.with_spec(f"stages.{stage}.data.source", "hf://owner/data")
    return job.with_spec("resources", {"nodes": 3, "gpusPerNode": 4, "shmSize": "1Mi", **resources})


def submit(client: Client, namespace: str, job: JobBuilder) -> None:
    """All objects of an attempt at PPO, without their owner, which is not there."""
    for obj in rendered("ppo", job, PLATFORM).values():
        own = copy.deepcopy(obj)
        own["metadata"].pop("ownerReferences", None)
        own["metadata"]["namespace"] = namespace
        client.create(own)


def places(pods: list[dict[str, Any]]) -> list[str]:
    return [pod["spec"]["nodeName"] for pod in pods if pod["spec"].get("nodeName")]


def wait_for_pods(
    client: Client, namespace: str, until: Callable[[list[dict[str, Any]]], bool]
) -> list[dict[str, Any]]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        pods = client.list("v1/pods", namespace, labels="rlhf.dev/job=tiny")
        if until(pods):
            return pods
        time.sleep(0.1)
    raise AssertionError([pod["status"] for pod in pods])


@pytest.mark.slow
def test_a_gang_is_bound_as_a_whole_and_in_one_zone(
    control_plane: ControlPlane, namespace: str, make_node: MakeNode
) -> None:
    zone_of = {}
    for zone in ("a", "b"):
        for _ in range(3):
            node = make_node({"nvidia.com/gpu": 4}, labels={ZONE: f"{namespace}-{zone}"})
            zone_of[node.name] = zone
    job = gang_of_three(topology={"level": ZONE})
    submit(control_plane.client, namespace, job)
    pods = wait_for_pods(control_plane.client, namespace, lambda pods: len(places(pods)) == 3)
    assert len({zone_of[name] for name in places(pods)}) == 1


@pytest.mark.slow
def test_a_gang_that_does_not_fit_holds_nothing(
    control_plane: ControlPlane, namespace: str, make_node: MakeNode
) -> None:
    nodes = [make_node({"nvidia.com/gpu": 4}) for _ in range(2)]
    submit(control_plane.client, namespace, gang_of_three())
    pods = wait_for_pods(control_plane.client, namespace, _are_unschedulable)
    assert places(pods) == []
    nodes.append(make_node({"nvidia.com/gpu": 4}))
    pods = wait_for_pods(control_plane.client, namespace, lambda pods: len(places(pods)) == 3)
    assert set(places(pods)) == {node.name for node in nodes}


def _are_unschedulable(pods: list[dict[str, Any]]) -> bool:
    reasons = [
        condition.get("reason")
        for pod in pods
        for condition in pod["status"].get("conditions", [])
        if condition["type"] == "PodScheduled"
    ]
    return len(reasons) == 3 and "Unschedulable" in reasons
