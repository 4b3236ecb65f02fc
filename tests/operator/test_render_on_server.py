"""What a real API server says to everything that is rendered: fields, CEL rules, pod security."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from builders import JobBuilder, a_job
from cluster.client import Client
from cluster.control_plane import ControlPlane
from kubernetes.client import ApiException
from rendering import Object, pod, rendered
from rlhf_operator.render import Platform
from structural import CRDS
from test_gang import MATRIX, NATIVE, SERVED, four_nodes
from test_render_security import SPECS, STAGES, on_a_cluster

FOREIGN = {name: SERVED[name] for name in ("volcano", "coscheduling", "koordinator", "kai")}
COLLECTIONS = {
    "PersistentVolumeClaim": "api/v1/namespaces/{}/persistentvolumeclaims",
    "ConfigMap": "api/v1/namespaces/{}/configmaps",
    "Service": "api/v1/namespaces/{}/services",
    "Job": "apis/batch/v1/namespaces/{}/jobs",
    "Pod": "api/v1/namespaces/{}/pods",
}


def collection(obj: Object, namespace: str) -> str:
    """Where objects of a kind are created."""
    if obj["kind"] in COLLECTIONS:
        return "/" + COLLECTIONS[obj["kind"]].format(namespace)
    return f"/apis/{obj['apiVersion']}/namespaces/{namespace}/podgroups"


def check(client: Client, obj: Object, namespace: str) -> None:
    """Dry-run creation with strict fields; ApiException where it is refused."""
    own = copy.deepcopy(obj)
    own["metadata"]["namespace"] = namespace
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    client.request("POST", collection(own, namespace), own, query)


@pytest.fixture(scope="module")
def schedulers(control_plane: ControlPlane) -> Iterator[Client]:
    """The kinds of the gang schedulers that are not Kubernetes' own."""
    client = control_plane.client
    manifests = [yaml.safe_load((CRDS / f"{name}.yaml").read_text()) for name in FOREIGN]
    for crd in manifests:
        client.define(crd)
    yield client
    for crd in manifests:
        client.delete("apiextensions.k8s.io/v1/customresourcedefinitions", crd["metadata"]["name"])


@pytest.fixture
def restricted(control_plane: ControlPlane, namespace: str) -> str:
    """A namespace that refuses every pod that is not restricted."""
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    control_plane.client.patch("v1/namespaces", namespace, {"metadata": {"labels": label}})
    return namespace


def as_pod(objects: dict[str, Object]) -> Object:
    """The pod that the Job controller would make."""
    template = objects["Job"]["spec"]["template"]
    meta = {**template["metadata"], "name": "pod"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}


@pytest.mark.parametrize("name", SPECS)
def test_every_object_of_every_stage_is_accepted_and_every_pod_is_restricted(
    control_plane: ControlPlane, restricted: str, name: str
) -> None:
    platform = Platform(progress_url="https://progress")
    for stage in STAGES:
        if stage != "prepare" and stage not in SPECS[name].get("stages", STAGES):
            continue
        objects = rendered(stage, on_a_cluster(**SPECS[name]), platform)
        for obj in [*objects.values(), as_pod(objects)]:
            check(control_plane.client, obj, restricted)


def test_the_namespace_does_refuse(control_plane: ControlPlane, restricted: str) -> None:
    objects = rendered("ppo", a_job())  # its data are paths of this machine
    with pytest.raises(ApiException, match="violates PodSecurity"):
        check(control_plane.client, as_pod(objects), restricted)


def every_option() -> JobBuilder:
    """All that resources can say."""
    expression = {"key": "gpu", "operator": "In", "values": ["h100"]}
    term = {"labelSelector": {"matchLabels": {"noisy": "true"}}, "topologyKey": "zone"}
    weighted = {"weight": 5, "podAffinityTerm": term}
    preferred = {"weight": 7, "preference": {"matchExpressions": [expression]}}
    during = "DuringSchedulingIgnoredDuringExecution"
    return on_a_cluster(
        resources={
            "nodes": 2,
            "gpusPerNode": 8,
            "cpu": "1.5",
            "memory": "64Gi",
            "rdma": {"resource": "rdma/hca", "count": 8},
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}, {"operator": "Exists"}],
            "affinity": {
                "nodeAffinity": {
                    f"required{during}": {
                        "nodeSelectorTerms": [{"matchExpressions": [expression]}]
                    },
                    f"preferred{during}": [preferred],
                },
                "podAntiAffinity": {
                    f"required{during}": [term],
                    f"preferred{during}": [weighted],
                },
            },
            "topology": {"level": "topology.kubernetes.io/zone"},
        },
        imagePullPolicy="Always",
        imagePullSecrets=["registry"],
        env=[
            {"name": "NCCL_DEBUG", "value": "INFO"},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "token"}}},
        ],
        scheduling={"gang": "none"},
    )


def test_all_that_resources_can_say_is_kubernetes(
    control_plane: ControlPlane, restricted: str
) -> None:
    objects = rendered("ppo", every_option())
    assert set(pod(objects)["affinity"]) == {"nodeAffinity", "podAntiAffinity", "podAffinity"}
    for obj in [*objects.values(), as_pod(objects)]:
        check(control_plane.client, obj, restricted)


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("changes", MATRIX)
def test_every_gang_object_is_accepted(
    schedulers: Client, namespace: str, name: str, changes: dict[str, Any]
) -> None:
    job = four_nodes(name)
    for path, value in changes.items():
        job.with_spec(path, value)
    objects = rendered("ppo", job, Platform(served=frozenset([FOREIGN[name]])))
    check(schedulers, objects["PodGroup"], namespace)
    check(schedulers, objects["Job"], namespace)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("volcano", {"subGroupPolicy": [{"name": "a"}]}, "must not be mixed"),
        (
            "volcano",
            {"networkTopology": {"highestTierAllowed": 1, "highestTierName": "rack"}},
            "exclude each other",
        ),
        ("kai", {"minSubGroup": 1}, "exclude each other"),
        ("coscheduling", {"queue": "a"}, "unknown field"),
        ("koordinator", {"minMember": 0}, "greater than or equal to 1"),
    ],
)
def test_the_schemas_refuse_each_trap(
    schedulers: Client, namespace: str, name: str, change: dict[str, Any], said: str
) -> None:
    objects = rendered("ppo", four_nodes(name), Platform(served=frozenset([FOREIGN[name]])))
    objects["PodGroup"]["spec"] |= change
    with pytest.raises(ApiException, match=said):
        check(schedulers, objects["PodGroup"], namespace)


def test_the_native_gang_is_what_this_api_server_serves(
    control_plane: ControlPlane, namespace: str
) -> None:
    platform = Platform(served=frozenset([NATIVE["1.36"]]))
    objects = rendered("ppo", four_nodes(), platform)
    assert pod(objects)["schedulingGroup"] == {"podGroupName": "tiny-ppo-3"}
    for kind in ("PodGroup", "Job"):
        check(control_plane.client, objects[kind], namespace)
