"""Examples fit on the devices and volumes they name, and the guide's table is the arithmetic."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from rlhf_api.job import RLHFJob
from rlhf_api.resources import Resources
from rlhf_api.stages import AnyStage, PPOStage, SFTStage
from rlhf_api.stages.common import LoRA, StageCommon
from rlhf_api.validation import parse_job
from sizes import QWEN, Model, a_disk_needs, a_gpu_needs, state_of

ROOT = Path(__file__).parents[2]
GIB = 2**30
EXAMPLES = {
    # file: size of its model, GiB of a device that can be used
    "amd": ("7B", 191),
    "chinese": ("0.5B", 39),
    "cluster": ("7B", 79),
    "eight-gpus": ("7B", 79),
    "gitops/pipelines/assistant/job": ("7B", 79),
    "gitops/pipelines/smoke/job": ("0.5B", 39),
    "mig": ("0.5B", 19),
    "one-gpu": ("1.5B", 22),
    "sixty-four-gpus": ("32B", 139),
}
UNITS = {"Gi": 2**30, "Ti": 2**40}
WRITES = 1e9
"""Bytes a second that a node writes to a shared volume, a modest one, and its hashes read again."""


def example(name: str) -> RLHFJob:
    return parse_job(yaml.safe_load((ROOT / f"examples/{name}.yaml").read_text("utf-8")))


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_stage_of_an_example_fits_on_its_devices_and_is_saved_in_its_grace(name: str) -> None:
    size, gib = EXAMPLES[name]
    job, model = example(name), QWEN[size]
    for stage, settings in job.spec.stages.present().items():
        resources = job.spec.resources_of(stage)
        room = 39 if "40gb" in resources.device else gib  # of two slices, the larger one
        needed = a_gpu_needs(settings, model, resources) / GIB
        assert needed < room, f"{stage} needs {needed:.0f} GiB"
        seconds = state_of(settings, model) / resources.nodes / WRITES
        assert seconds < settings.checkpointing.grace_seconds, f"{stage}: {seconds:.0f} s"


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_an_example_writes_fits_on_its_volume_and_its_last_stage_may_run_again(
    name: str,
) -> None:
    job, model = example(name), QWEN[EXAMPLES[name][0]]
    claim = job.spec.checkpoints.claim
    assert claim is not None
    amount, unit = re.fullmatch(r"(\d+)(\w+)", str(claim.size)).groups()  # type: ignore[union-attr]
    last = list(job.spec.stages.present().values())[-1]
    again = state_of(last, model) + 2 * model.parameters
    assert a_disk_needs(job, model) + again < int(amount) * UNITS[unit]


def test_the_example_of_64_gpus_fits_on_80_gb_as_it_says() -> None:
    job, model = example("sixty-four-gpus"), QWEN["32B"]
    stages = job.spec.stages.present()
    with_adapters = LoRA(rank=64)
    stages["ppo"] = stages["ppo"].model_copy(update={"lora": with_adapters})
    for name, settings in stages.items():
        assert a_gpu_needs(settings, model, job.spec.resources_of(name)) / GIB < 79, name


def test_the_guides_table_is_the_arithmetic() -> None:
    guide = (ROOT / "docs/guides/memory.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| (\S+B) \| (.+?) \|$", guide, re.MULTILINE))
    assert rows.keys() == QWEN.keys()
    for size, model in QWEN.items():
        assert rows[size].split(" | ") == figures(model), size


def figures(model: Model) -> list[str]:
    """A row of the table: GB of a GPU in SFT and PPO on 8 and on 64 GPUs, GB of a checkpoint."""
    sft, ppo = (_stage(kind) for kind in (SFTStage, PPOStage))
    found = [
        a_gpu_needs(stage, model, _gang(nodes)) / 1e9 for stage in (sft, ppo) for nodes in (1, 8)
    ]
    return [f"{gb:.0f}" for gb in (*found, state_of(sft, model) / 1e9, state_of(ppo, model) / 1e9)]


def _stage(kind: type[StageCommon]) -> AnyStage:
    common = {"data": {"source": "x"}, "zero": {"stage": 3}, "gradientCheckpointing": True}
    stage: AnyStage = kind.model_validate(common)  # type: ignore[assignment]
    return stage


def _gang(nodes: int) -> Resources:
    return Resources(nodes=nodes, gpus_per_node=8)
