"""Each example is valid, can run on a cluster (the quickstart: here), and asks for what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.control_plane import ControlPlane
from rlhf_api.job import RLHFJob
from rlhf_api.validation import parse_job
from rlhf_operator.render import Platform, preview
from rlhf_operator.support import unsupported

Object = dict[str, Any]
EXAMPLES = Path(__file__).parents[2] / "examples"
DEVICES = {
    # file: most devices of a gang, by the resource that a container asks for
    "amd": (8, "amd.com/gpu"),
    "ascend": (16, "huawei.com/Ascend910"),
    "chinese": (1, "nvidia.com/gpu"),
    "cluster": (16, "nvidia.com/gpu"),
    "eight-gpus": (8, "nvidia.com/gpu"),
    "mig": (1, "nvidia.com/mig-3g.40gb"),
    "one-gpu": (1, "nvidia.com/gpu"),
    "sixty-four-gpus": (64, "nvidia.com/gpu"),
}


def example(name: str) -> RLHFJob:
    return parse_job(yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text("utf-8")))


def jobs_of(name: str) -> list[Object]:
    return [item for item in preview(example(name)) if item["kind"] == "Job"]


def devices(job: Object, device: str) -> int:
    """Of all pods of a stage's Job."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    each = int(container["resources"].get("limits", {}).get(device, 0))
    return each * int(job["spec"]["completions"])


def test_every_example_is_looked_at() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == {"quickstart", *DEVICES}


@pytest.mark.parametrize("name", DEVICES)
def test_an_example_runs_on_a_cluster_and_asks_for_its_devices(name: str) -> None:
    assert unsupported(example(name), Platform()) == []
    count, device = DEVICES[name]
    assert max(devices(job, device) for job in jobs_of(name)) == count
    assert devices(jobs_of(name)[0], device) == 0  # prepare


@pytest.mark.parametrize("name", DEVICES)
def test_the_api_server_takes_an_example(
    name: str, installed: ControlPlane, module_namespace: str
) -> None:
    words = ("apply", "--server-side", "--dry-run=server", "-n", module_namespace)
    installed.kubectl(*words, "-f", str(EXAMPLES / f"{name}.yaml"))


def test_a_stage_with_its_own_trainer_runs_its_command() -> None:
    (container,) = jobs_of("ascend")[-1]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/npu-trainer:1.0.0"
    assert "/opt/trainer/sft.py" in container["command"]


def test_a_stage_on_another_slice_asks_for_that() -> None:
    _, sft, dpo = jobs_of("mig")
    assert devices(sft, "nvidia.com/mig-2g.20gb") == devices(dpo, "nvidia.com/mig-3g.40gb") == 1
