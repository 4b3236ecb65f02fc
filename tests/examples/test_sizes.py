"""Examples fit on the devices and volumes they name, and the guide's table is the arithmetic."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from rlhf_api.job import RLHFJob
from rlhf_api.resources import Resources
from rlhf_api.rules.quantities import in_bytes
from rlhf_api.stages import AnyStage, PPOStage, SFTStage
from rlhf_api.stages.common import LoRA, StageCommon
from rlhf_api.validation import parse_job
from rlhf_cli.main import main
from rlhf_planner.architecture import read_config
from rlhf_planner.disk import of_a_checkpoint, of_a_job
from rlhf_planner.hardware import GIB
from rlhf_planner.memory import Models, of_a_device

ROOT = Path(__file__).parents[2]
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
WRITES = 1e9
"""Bytes a second that a node writes to a shared volume, a modest one, and its hashes read again."""


def config(
    layers: int, hidden: int, heads: int, keys: int, width: int, **more: object
) -> dict[str, object]:
    """What a Qwen2.5's config.json holds; other models of as many parameters are much the same."""
    return {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "tie_word_embeddings": False,
        **more,
    }


def qwen(*shape: int, **more: object) -> Models:
    found = read_config(config(*shape, **more))
    return Models(found, found)


SMALL = {"tie_word_embeddings": True, "vocab_size": 151936}
QWEN = {
    "0.5B": qwen(24, 896, 14, 2, 4864, **SMALL),
    "1.5B": qwen(28, 1536, 12, 2, 8960, **SMALL),
    "7B": qwen(28, 3584, 28, 4, 18944),
    "14B": qwen(48, 5120, 40, 8, 13824),
    "32B": qwen(64, 5120, 40, 8, 27648),
    "72B": qwen(80, 8192, 64, 8, 29568),
}


def example(name: str) -> RLHFJob:
    return parse_job(yaml.safe_load((ROOT / f"examples/{name}.yaml").read_text("utf-8")))


def taken(job: RLHFJob, stage: str, settings: AnyStage, models: Models) -> float:
    """GiB of a device."""
    resources, evaluates = job.spec.resources_of(stage), job.spec.evaluation is not None
    return of_a_device(settings, models, resources, evaluates=evaluates).total / GIB


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_stage_of_an_example_fits_on_its_devices_and_is_saved_in_its_grace(name: str) -> None:
    size, gib = EXAMPLES[name]
    job, models = example(name), QWEN[size]
    for stage, settings in job.spec.stages.present().items():
        resources = job.spec.resources_of(stage)
        room = 39 if "40gb" in resources.device else gib  # of two slices, the larger one
        needed = taken(job, stage, settings, models)
        assert needed < room, f"{stage} needs {needed:.0f} GiB"
        seconds = of_a_checkpoint(settings, models) / resources.nodes / WRITES
        assert seconds < settings.checkpointing.grace_seconds, f"{stage}: {seconds:.0f} s"


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_an_example_writes_fits_on_its_volume_and_its_last_stage_may_run_again(
    name: str,
) -> None:
    job, models = example(name), QWEN[EXAMPLES[name][0]]
    claim = job.spec.checkpoints.claim
    assert claim is not None
    last = list(job.spec.stages.present().values())[-1]
    again = of_a_checkpoint(last, models) + 2 * models.policy.parameters
    assert of_a_job(job, models) + again < in_bytes(claim.size)


def test_the_example_of_64_gpus_fits_on_80_gb_as_it_says() -> None:
    job, models = example("sixty-four-gpus"), QWEN["32B"]
    stages = job.spec.stages.present()
    with_adapters = LoRA(rank=64)
    stages["ppo"] = stages["ppo"].model_copy(update={"lora": with_adapters})
    for name, settings in stages.items():
        assert taken(job, name, settings, models) < 79, name


def test_the_guides_table_is_the_arithmetic() -> None:
    guide = (ROOT / "docs/guides/memory.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| (\S+B) \| (.+?) \|$", guide, re.MULTILINE))
    assert rows.keys() == QWEN.keys()
    assert {size: rows[size].split(" | ") for size in QWEN} == {
        size: figures(models) for size, models in QWEN.items()
    }


def test_the_guides_estimate_is_what_rlhfctl_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config(28, 3584, 28, 4, 18944)), "utf-8")
    job = str(ROOT / "examples/eight-gpus.yaml")
    assert main(["estimate", job, "--gpu", "A100-40GB", "--config", str(tmp_path)]) == 1
    guide = (ROOT / "docs/guides/memory.md").read_text("utf-8")
    assert f"```text\n{capsys.readouterr().out}```" in guide


def figures(models: Models) -> list[str]:
    """A row of the table: GB of a GPU in SFT and PPO on 8 and on 64 GPUs, GB of a checkpoint."""
    sft, ppo = (_stage(kind) for kind in (SFTStage, PPOStage))
    found = [
        of_a_device(stage, models, _gang(nodes)).total / 1e9
        for stage in (sft, ppo)
        for nodes in (1, 8)
    ]
    states = [of_a_checkpoint(stage, models) / 1e9 for stage in (sft, ppo)]
    return [f"{gb:.0f}" for gb in (*found, *states)]


def _stage(kind: type[StageCommon]) -> AnyStage:
    common = {"data": {"source": "x"}, "zero": {"stage": 3}, "gradientCheckpointing": True}
    stage: AnyStage = kind.model_validate(common)  # type: ignore[assignment]
    return stage


def _gang(nodes: int) -> Resources:
    return Resources(nodes=nodes, gpus_per_node=8)
