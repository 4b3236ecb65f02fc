"""Rendered attempts for tests, and where to find things in them."""

from __future__ import annotations

from typing import Any

import yaml
from builders import JobBuilder, a_job
from rlhf_api.run import StageRun
from rlhf_api.status import CheckpointRef, JobStatus, StageStatus
from rlhf_operator.render import Platform, render

Object = dict[str, Any]
Objects = dict[str, Object]

HASH = "sha256:" + "ab" * 32
ANY = Platform()
STATUS = JobStatus(
    sources={"model": "sha256:base", "stages.ppo.data": "sha256:prompts"},
    stages={
        name: StageStatus(
            checkpoint=CheckpointRef(uri=f"tiny/{name}/attempt-1/output", digest=f"sha256:{name}")
        )
        for name in ("sft", "reward")
    },
)


def rendered(
    stage: str, job: JobBuilder | None = None, platform: Platform = ANY, attempt: int = 3
) -> Objects:
    """The objects of an attempt by kind."""
    built = (job or a_job()).build().model_copy(update={"status": STATUS})
    objects = render(built, stage, attempt, HASH, "sha256:settings", platform)
    assert len({item["kind"] for item in objects}) == len(objects)
    return {item["kind"]: item for item in objects}


def pod(objects: Objects) -> Object:
    spec: Object = objects["Job"]["spec"]["template"]["spec"]
    return spec


def container(objects: Objects) -> Object:
    (only,) = pod(objects)["containers"]
    found: Object = only
    return found


def stage_file(objects: Objects) -> StageRun:
    text = objects["ConfigMap"]["data"]["stage.yaml"]
    return StageRun.model_validate(yaml.safe_load(text), by_alias=True, by_name=False)


def labels(objects: Objects) -> dict[str, str]:
    found: dict[str, str] = objects["Job"]["spec"]["template"]["metadata"]["labels"]
    return found


def annotations(objects: Objects) -> dict[str, str]:
    found: dict[str, str] = objects["Job"]["spec"]["template"]["metadata"]["annotations"]
    return found


def sources(objects: Objects) -> Objects:
    """The environment: by name, what stands beside the name."""
    listed = container(objects)["env"]
    by_name = {item["name"]: {k: v for k, v in item.items() if k != "name"} for item in listed}
    assert len(by_name) == len(listed)
    return by_name


def environment(objects: Objects) -> dict[str, str]:
    """Variables that have a value, by name."""
    return {name: item["value"] for name, item in sources(objects).items() if "value" in item}


def volume(objects: Objects, name: str) -> Object:
    found = next(item for item in pod(objects)["volumes"] if item["name"] == name)
    return {key: value for key, value in found.items() if key != "name"}


def mounts(objects: Objects) -> Objects:
    """The container's mounts by path."""
    return {item["mountPath"]: item for item in container(objects)["volumeMounts"]}
