"""What a change of a manifest or of its data trains again: rlhfctl, processes, real training."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from a_run_here import RunHere

EXAMPLES = Path(__file__).parents[2] / "examples"
STAGES = ("sft", "reward", "ppo", "dpo")
SMALL = {"globalBatchSize": 4, "microBatchSize": 4}


def manifest() -> dict[str, Any]:
    """The quickstart job in one or two steps a stage."""
    made: dict[str, Any] = yaml.safe_load((EXAMPLES / "quickstart.yaml").read_text())
    spec = made["spec"]
    del spec["evaluation"]
    for name in ("sft", "reward", "dpo"):
        spec["stages"][name] |= {"maxSteps": 2} | SMALL
        spec["stages"][name]["data"]["limit"] = 40
    spec["stages"]["ppo"] |= {"rollouts": 1, "minibatchSize": 4} | SMALL
    spec["stages"]["ppo"]["data"]["limit"] = 40
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> RunHere:
    """A folder with the manifest and what it names; the job has been trained once."""
    made = RunHere(tmp_path_factory.mktemp("changes"), {**os.environ, "OMP_NUM_THREADS": "1"})
    for name in ("base-model", "data"):
        shutil.copytree(EXAMPLES / name, made.folder / name)
    (made.folder / "job.yaml").write_text(yaml.safe_dump(manifest()))
    assert train(made) == dict.fromkeys(STAGES, 1)
    return made


def train(place: RunHere, *more: str) -> dict[str, int]:
    """Runs the job to its end; the number of each stage's newest attempt."""
    command = place.start("run", "job.yaml", "--dir", "run", *more)
    place.finish(command, seconds=500)
    return {name: place.stage(name)["attempt"] for name in STAGES}


def digests(place: RunHere) -> dict[str, str]:
    return {name: place.stage(name)["checkpoint"]["digest"] for name in STAGES}


def test_changes_lead_to_just_the_stages_that_they_concern(place: RunHere) -> None:
    """In one test, as each step starts from the run that the one before left behind."""
    first = digests(place)
    assert train(place) == dict.fromkeys(STAGES, 1), "a second run trains nothing"
    assert digests(place) == first

    changed = train(place, "--set", "spec.stages.ppo.kl.coef=0.05")
    assert changed == {"sft": 1, "reward": 1, "ppo": 2, "dpo": 1}, "only PPO runs"

    data = place.folder / "data" / "sft.jsonl"
    lines = data.read_text().splitlines(keepends=True)
    data.write_text("".join(lines[1:]))
    assert train(place) == {"sft": 2, "reward": 2, "ppo": 3, "dpo": 2}, "all after SFT run"
