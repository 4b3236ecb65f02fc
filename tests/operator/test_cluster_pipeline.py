"""A whole pipeline on a real control plane; pods are played from a script."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import MANIFEST
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Script, Scripted, succeed
from operator_process import OperatorProcess

CRD = Path(__file__).parents[2] / "crds" / "rlhf.dev_rlhfjobs.yaml"
JOBS = "rlhf.dev/v1alpha1/rlhfjobs"


@pytest.fixture(scope="module")
def crd(control_plane: ControlPlane) -> None:
    control_plane.client.apply(yaml.safe_load(CRD.read_text()))
    control_plane.kubectl("wait", "--for=condition=Established", "crd/rlhfjobs.rlhf.dev")


def manifest(namespace: str, name: str = "tiny") -> dict[str, Any]:
    made = copy.deepcopy(MANIFEST)
    made["metadata"] = {"name": name, "namespace": namespace}
    made["spec"]["model"] = {"source": "hf://org/model"}
    for stage in made["spec"]["stages"].values():
        stage["data"]["source"] = "hf://org/data"
    made["spec"]["resources"] = {"nodes": 2, "gpusPerNode": 4}
    return made


def condition(job: dict[str, Any] | None, kind: str) -> str | None:
    found = ((job or {}).get("status") or {}).get("conditions") or []
    return next((c["status"] for c in found if c["type"] == kind), None)


def test_an_applied_job_runs_to_ready(
    crd: None,
    control_plane: ControlPlane,
    namespace: str,
    make_node: Callable[..., Any],
    tmp_path: Path,
) -> None:
    client = control_plane.client
    make_node({"nvidia.com/gpu": 8})
    make_node({"nvidia.com/gpu": 8})
    with (
        OperatorProcess(control_plane.kubeconfig, namespace, tmp_path / "operator.log"),
        Kubelet(control_plane.kubeconfig, Scripted(succeed)),
    ):
        control_plane.kubectl("apply", "-f", "-", input=json.dumps(manifest(namespace)))
        job = client.wait_for(
            JOBS, "tiny", lambda job: condition(job, "Ready") == "True", namespace, timeout=60
        )
    assert job is not None
    assert job["status"]["phase"] == "Succeeded"
    assert {n: s["attempt"] for n, s in job["status"]["stages"].items()} == {
        "sft": 1,
        "reward": 1,
        "ppo": 1,
        "dpo": 1,
    }
