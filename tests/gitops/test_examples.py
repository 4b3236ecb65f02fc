"""examples/gitops: what is named exists, all is pinned, one pipeline waits for the other."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.control_plane import ControlPlane
from judging import REPOSITORY
from rlhf_api.data import DataSource, ModelSource
from rlhf_api.job import RLHFJob
from rlhf_api.sources import named_sources
from rlhf_api.validation import parse_job
from rlhf_operator.render import Platform
from rlhf_operator.support import unsupported

Object = dict[str, Any]
FOLDER = REPOSITORY / "examples/gitops"
PIPELINES = ("smoke", "assistant")
"""In the order in which they run."""


def read(path: str) -> list[Object]:
    return list(yaml.safe_load_all((FOLDER / path).read_text("utf-8")))


def job(name: str) -> RLHFJob:
    (manifest,) = read(f"pipelines/{name}/job.yaml")
    return parse_job(manifest)


def wave(name: str) -> int:
    (manifest,) = read(f"pipelines/{name}/job.yaml")
    return int(manifest["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"])


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_runs_on_a_cluster(name: str) -> None:
    assert unsupported(job(name), Platform()) == []


@pytest.mark.parametrize("name", PIPELINES)
def test_models_and_data_are_pinned_by_commit(name: str) -> None:
    for ref in named_sources(job(name).spec):
        assert isinstance(ref.value, ModelSource | DataSource)
        assert len(ref.value.revision or "") == 40, ref.field


def test_a_person_approves_the_reward_model() -> None:
    reward = job("assistant").spec.stages.reward
    assert reward is not None
    assert reward.gate is not None
    assert reward.gate.approval


def test_no_tool_sets_back_what_the_actions_suspend_and_resume_set() -> None:
    for name in PIPELINES:
        (manifest,) = read(f"pipelines/{name}/job.yaml")
        assert "suspend" not in manifest["spec"]


def test_argo_cd_runs_one_pipeline_after_the_other() -> None:
    waves = [wave(name) for name in PIPELINES]
    assert waves == sorted(set(waves))
    (application,) = read("argocd/application.yaml")
    assert (REPOSITORY / application["spec"]["source"]["path"]).is_dir()


def test_flux_runs_one_pipeline_after_the_other() -> None:
    source, *steps = read("flux/pipelines.yaml")
    for number, (name, step) in enumerate(zip(PIPELINES, steps, strict=True)):
        spec = step["spec"]
        assert step["metadata"]["name"] == name
        before = [{"name": PIPELINES[number - 1]}] if number else []
        assert spec.get("dependsOn", []) == before
        assert spec["sourceRef"] == {"kind": "GitRepository", "name": source["metadata"]["name"]}
        assert spec["healthChecks"] == [checked(Path(spec["path"]))]


def flux_reads(program: Callable[[str], Path], objects: list[Object]) -> str:
    """What Flux's own types do not take; empty where all is well."""
    lines = "\n".join(map(json.dumps, objects))
    words = [program("flux-check")]
    done = subprocess.run(words, input=lines, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (done.stderr == "")
    return done.stderr


def test_flux_knows_every_field(program: Callable[[str], Path]) -> None:
    objects = read("flux/pipelines.yaml")
    assert flux_reads(program, objects) == ""
    objects[-1]["spec"]["dependOn"] = []
    assert 'unknown field "dependOn"' in flux_reads(program, objects)


def test_flux_installs_the_operator_from_an_overlay(program: Callable[[str], Path]) -> None:
    objects = read("flux/operator.yaml")
    assert flux_reads(program, objects) == ""
    source, step = objects
    assert step["spec"]["sourceRef"]["name"] == source["metadata"]["name"]
    assert (REPOSITORY / step["spec"]["path"] / "kustomization.yaml").is_file()


def checked(path: Path) -> Object:
    """The RLHFJob of a folder, as a health check names it."""
    (manifest,) = read(f"{(REPOSITORY / path).relative_to(FOLDER)}/job.yaml")
    (kustomization,) = read(f"{(REPOSITORY / path).relative_to(FOLDER)}/kustomization.yaml")
    kind = {key: manifest[key] for key in ("apiVersion", "kind")}
    return {
        **kind,
        "name": manifest["metadata"]["name"],
        "namespace": kustomization["namespace"],
    }


def test_the_api_server_takes_what_kustomize_makes(installed: ControlPlane, namespace: str) -> None:
    made = list(yaml.safe_load_all(installed.kubectl("kustomize", str(FOLDER / "pipelines"))))
    assert [item["metadata"]["name"] for item in made] == sorted(PIPELINES)
    for item in made:
        item["metadata"]["namespace"] = namespace
        text = yaml.safe_dump(item)
        installed.kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", input=text)
