"""The whole pipeline as a user runs it: rlhfctl, rendered objects, processes, real training."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
STAGES = ["sft", "reward", "ppo", "dpo"]


class Workplace:
    """A copy of the examples, cut to a few steps, and the run made from it."""

    def __init__(self, directory: Path) -> None:
        self.examples = directory / "examples"
        self.run_directory = directory / "run"
        shutil.copytree(REPOSITORY / "examples", self.examples)
        manifest = yaml.safe_load((self.examples / "quickstart.yaml").read_text())
        stages = manifest["spec"]["stages"]
        for name in ("sft", "reward", "dpo"):
            stages[name]["maxSteps"] = 4
            stages[name]["data"]["limit"] = 200
        stages["sft"] |= {"maxSteps": 60, "data": {"source": "data/sft.jsonl", "limit": 1000}}
        stages["ppo"]["rollouts"] = 2
        manifest["spec"]["evaluation"]["limit"] = 8
        self.manifest = self.examples / "small.yaml"
        self.manifest.write_text(yaml.safe_dump(manifest))

    def rlhfctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rlhf_cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)

    def train(self, *more: str) -> dict[str, int]:
        """Runs the job to its end; the number of each stage's newest attempt."""
        done = self.rlhfctl("run", str(self.manifest), "--dir", str(self.run_directory), *more)
        assert done.returncode == 0, done.stdout + done.stderr
        return {name: self.status["stages"][name]["attempt"] for name in STAGES}

    @property
    def status(self) -> dict[str, Any]:
        job = yaml.safe_load((self.run_directory / "status.yaml").read_text())
        status: dict[str, Any] = job["status"]
        return status

    def output(self, stage: str) -> Path:
        uri = self.status["stages"][stage]["checkpoint"]["uri"]
        (found,) = self.run_directory.glob(f"volumes/*/{uri}")
        return found

    def digests(self) -> dict[str, str]:
        return {name: self.status["stages"][name]["checkpoint"]["digest"] for name in STAGES}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("pipeline"))
    assert place.train() == dict.fromkeys(STAGES, 1)
    return place


def test_every_stage_ends_with_a_model_that_transformers_loads(workplace: Workplace) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    for stage in ("sft", "ppo", "dpo"):
        model = AutoModelForCausalLM.from_pretrained(workplace.output(stage))
        tokenizer = AutoTokenizer.from_pretrained(workplace.output(stage))
        assert model.config.vocab_size == len(tokenizer)
        assert tokenizer.chat_template
    reward = AutoModelForSequenceClassification.from_pretrained(workplace.output("reward"))
    assert reward.config.num_labels == 1


def test_the_status_is_the_one_a_cluster_would_show(workplace: Workplace) -> None:
    status = workplace.status
    conditions = {item["type"]: item["status"] for item in status["conditions"]}
    assert status["phase"] == "Succeeded"
    assert conditions["Ready"] == "True"
    assert conditions.get("Stalled", "False") == "False"
    for name in STAGES:
        stage = status["stages"][name]
        assert stage["phase"] == "Succeeded"
        assert stage["startTime"] <= stage["completionTime"]
        assert stage["metrics"]


def test_the_report_shows_every_model_and_needs_nothing_else(workplace: Workplace) -> None:
    report = (workplace.run_directory / "report.html").read_text()
    assert "<svg" in report
    for word in ("Base", "SFT", "PPO", "DPO"):
        assert word in report
    for tag in ('src="http', 'href="http', "@import"):
        assert tag not in report


def test_each_model_answered_the_same_prompts(workplace: Workplace) -> None:
    asked = {}
    for stage in ("sft", "ppo", "dpo"):
        rows = (workplace.output(stage).parent / "samples.jsonl").read_text().splitlines()
        for row in map(json.loads, rows):
            asked.setdefault(row["model"], []).append(row["id"])
    assert set(asked) == {"base", "sft", "ppo", "dpo"}
    assert len({tuple(ids) for ids in asked.values()}) == 1


def test_the_trained_model_answers(workplace: Workplace) -> None:
    command = [sys.executable, "-m", "rlhf_cli", "chat", str(workplace.run_directory)]
    asked = "What colour is a lemon?\n/exit\n"
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_changes_lead_to_just_the_stages_that_they_concern(workplace: Workplace) -> None:
    """In one test, as each step starts from the run that the one before left behind."""
    first = workplace.digests()
    assert workplace.train() == dict.fromkeys(STAGES, 1), "a second run trains nothing"
    assert workplace.digests() == first

    changed = workplace.train("--set", "spec.stages.ppo.kl.coef=0.05")
    assert changed == {"sft": 1, "reward": 1, "ppo": 2, "dpo": 1}, "only PPO runs"

    data = workplace.examples / "data" / "sft.jsonl"
    lines = data.read_text().splitlines(keepends=True)
    data.write_text("".join(lines[1:]))
    assert workplace.train() == {"sft": 2, "reward": 2, "ppo": 3, "dpo": 2}, "all after SFT run"
