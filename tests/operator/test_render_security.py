"""Every pod that can be rendered is restricted; the check itself finds each breach."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from builders import JobBuilder, a_job
from pod_security import violations
from rendering import ANY, container, environment, mounts, pod, rendered, sources
from rlhf_operator.render import Platform

STAGES = ("prepare", "sft", "reward", "ppo", "dpo")
GANGS = ("none", "volcano", "kueue")
CLUSTER = Platform(progress_url="https://progress")


def on_a_cluster(**spec: Any) -> JobBuilder:
    """A job whose sources pods can reach."""
    job = a_job().with_spec("model", {"source": "hf://owner/base", "secret": "hub"})
    for stage in ("sft", "reward", "ppo", "dpo"):
        job.with_spec(f"stages.{stage}.data.source", f"pvc://data/{stage}.jsonl")
    for path, value in spec.items():
        job.with_spec(path, value)
    return job


SPECS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gpus": {"resources": {"nodes": 2, "gpusPerNode": 8, "memory": "64Gi"}},
    "rdma": {"resources": {"gpusPerNode": 8, "rdma": {"resource": "rdma/hca", "count": 8}}},
    "claims": {"resources": {"gpusPerNode": 4, "deviceClaimTemplate": "four-gpus"}},
    "image": {"model": {"source": "oci://registry/base:1#weights"}},
    "bucket": {"checkpoints": {"uri": "s3://bucket/team", "secret": "s3"}},
    "secrets": {"secrets": [{"name": "wandb"}, {"name": "ca", "mountPath": "/certs"}]},
    "foreign": {"stages": {"ppo": {"data": {"source": "pvc://d/p"}, "command": ["train"]}}},
    "deadline": {
        "stages": {"sft": {"data": {"source": "pvc://d/s"}, "retry": {"deadlineSeconds": 9}}}
    },
}


@pytest.mark.parametrize(
    ("name", "stage", "gang"),
    [
        (name, stage, gang)
        for (name, spec), stage, gang in product(
            SPECS.items(), STAGES, ("none", "volcano", "kueue")
        )
        if stage == "prepare" or stage in spec.get("stages", STAGES)
    ],
)
def test_every_pod_is_restricted(name: str, stage: str, gang: str) -> None:
    job = on_a_cluster(**SPECS[name], scheduling={"gang": gang, "queue": "research"})
    assert violations(pod(rendered(stage, job, CLUSTER))) == []


def _own(spec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = spec["containers"][0]["securityContext"]
    return found


BREACHES: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("hostNetwork", lambda pod: pod.update(hostNetwork=True)),
    ("volume hostPath", lambda pod: pod["volumes"].append({"name": "x", "hostPath": {}})),
    ("root", lambda pod: pod["securityContext"].update(runAsUser=0)),
    ("root", lambda pod: pod["securityContext"].pop("runAsNonRoot")),
    ("seccomp", lambda pod: pod["securityContext"].pop("seccompProfile")),
    ("privileged", lambda pod: _own(pod).update(privileged=True)),
    ("allowPrivilegeEscalation", lambda pod: _own(pod).pop("allowPrivilegeEscalation")),
    ("capabilities are kept", lambda pod: _own(pod).pop("capabilities")),
    ("capabilities are added", lambda pod: _own(pod)["capabilities"].update(add=["IPC_LOCK"])),
    ("writable root", lambda pod: _own(pod).pop("readOnlyRootFilesystem")),
    ("automountServiceAccountToken", lambda pod: pod.pop("automountServiceAccountToken")),
    ("enableServiceLinks", lambda pod: pod.pop("enableServiceLinks")),
    ("activeDeadlineSeconds", lambda pod: pod.pop("activeDeadlineSeconds")),
    ("emptyDir without a size", lambda pod: pod["volumes"].append({"name": "x", "emptyDir": {}})),
]


@pytest.mark.parametrize(("breach", "change"), BREACHES)
def test_the_check_finds_each_breach(breach: str, change: Callable[[dict[str, Any]], Any]) -> None:
    spec = copy.deepcopy(pod(rendered("ppo", on_a_cluster(), CLUSTER)))
    change(spec)
    assert violations(spec) == [breach]


def test_a_path_of_this_machine_is_a_volume_that_no_restricted_pod_has() -> None:
    assert violations(pod(rendered("ppo", a_job()))) == ["volume hostPath"] * 2


def test_only_prepare_sees_the_credentials_of_sources() -> None:
    job = on_a_cluster(secrets=[{"name": "wandb"}])
    job.with_spec("stages.sft.data", {"source": "s3://bucket/sft.jsonl", "secret": "s3"})
    folders = {path for path in mounts(rendered("prepare", job)) if "/secrets/" in path}
    assert folders == {f"/rlhf/secrets/{name}" for name in ("hub", "s3", "wandb")}
    for stage in ("sft", "ppo"):
        folders = {path for path in mounts(rendered(stage, job)) if "/secrets/" in path}
        assert folders == {"/rlhf/secrets/wandb"}


def test_secrets_are_named_and_never_read() -> None:
    job = on_a_cluster(secrets=[{"name": "wandb", "mountPath": "/keys"}])
    job.with_spec("stages.ppo.secrets", [{"name": "judge"}])
    objects = rendered("ppo", job)
    names = {item["secret"]["secretName"] for item in pod(objects)["volumes"] if "secret" in item}
    assert names == {"wandb", "judge"}
    assert mounts(objects)["/keys"]["readOnly"]
    assert mounts(objects)["/rlhf/secrets/judge"]["readOnly"]
    assert "/rlhf/secrets/judge" not in mounts(rendered("sft", job))


def test_a_stages_environment_is_added_to_the_jobs_and_ours_wins() -> None:
    job = a_job().with_spec("env", [
        {"name": "NCCL_DEBUG", "value": "WARN"},
        {"name": "HTTPS_PROXY", "value": "http://proxy"},
        {"name": "TMPDIR", "value": "/elsewhere"},
    ])  # fmt: skip
    key = {"secretKeyRef": {"name": "wandb", "key": "token"}}
    job.with_spec("stages.ppo.env", [
        {"name": "NCCL_DEBUG", "value": "INFO"},
        {"name": "WANDB_API_KEY", "valueFrom": key},
    ])  # fmt: skip
    ppo = rendered("ppo", job)
    assert environment(ppo)["NCCL_DEBUG"] == "INFO"
    assert sources(ppo)["WANDB_API_KEY"] == {"valueFrom": key}
    assert environment(ppo)["TMPDIR"] == "/rlhf/tmp"
    assert environment(rendered("sft", job))["NCCL_DEBUG"] == "WARN"
    assert environment(rendered("prepare", job))["HTTPS_PROXY"] == "http://proxy"


def test_caches_lie_in_a_volume_as_the_root_is_read_only() -> None:
    assert environment(rendered("ppo"))["HOME"] == "/rlhf/tmp"
    assert "HF_HOME" not in environment(rendered("ppo"))
    assert environment(rendered("prepare"))["HF_HOME"] == "/rlhf/checkpoints/sources/.cache"


def test_on_one_machine_home_and_credentials_are_the_users_own() -> None:
    key = {"secretKeyRef": {"name": "wandb", "key": "token"}}
    job = on_a_cluster(env=[{"name": "WANDB_API_KEY", "valueFrom": key}], secrets=[{"name": "x"}])
    job.with_spec("resources", {"gpusPerNode": 1, "rdma": {"resource": "rdma/a"}})
    for stage in ("prepare", "ppo"):
        objects = rendered(stage, job, ANY._replace(is_one_machine=True))
        assert not {"HOME", "HF_HOME", "WANDB_API_KEY", "NCCL_NET"} & set(sources(objects))
        assert not [item for item in pod(objects)["volumes"] if "secret" in item]


def test_the_kubelets_limit_comes_after_the_jobs_own() -> None:
    job = a_job().with_spec("stages.ppo.retry", {"deadlineSeconds": 60})
    assert pod(rendered("ppo", job))["activeDeadlineSeconds"] == 180
    assert pod(rendered("ppo"))["activeDeadlineSeconds"] > 30 * 86_400
    assert 86_400 < pod(rendered("prepare"))["activeDeadlineSeconds"] < 2 * 86_400


def test_pull_policy_and_pull_secrets_are_passed_on() -> None:
    job = a_job().with_spec("imagePullPolicy", "Always").with_spec("imagePullSecrets", ["a", "b"])
    for stage in ("prepare", "ppo"):
        objects = rendered(stage, job)
        assert container(objects)["imagePullPolicy"] == "Always"
        assert pod(objects)["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}]
    assert "imagePullPolicy" not in container(rendered("ppo"))
