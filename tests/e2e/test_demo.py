"""`make demo` as README promises it: the pipeline trains, and each stage did its job."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from a_run_here import RunHere

REPOSITORY = Path(__file__).parents[2]
STAGES = ("sft", "reward", "ppo", "dpo")


class Demo(RunHere):
    """What `make demo` runs, in a directory where nobody's runs are."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, os.environ)
        shutil.copytree(REPOSITORY / "examples", folder / "examples")
        silently = ("make", "--just-print", "--no-print-directory", "--directory")
        shown = subprocess.run(
            [*silently, str(REPOSITORY), "demo"], capture_output=True, text=True, check=True
        )
        self._program, *self._arguments = shlex.split(shown.stdout.splitlines()[-1])
        assert Path(self._program).name == "rlhfctl"
        self.directory = folder / self._arguments[self._arguments.index("--dir") + 1]

    def train(self) -> str:
        """Its output."""
        return self.finish(self.start(*self._arguments), seconds=900)

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Of each stage."""
        return {name: self.stage(name)["metrics"] for name in STAGES}

    def output(self, stage: str) -> Path:
        """The model of a stage."""
        (found,) = self.directory.glob(f"volumes/*/{self.stage(stage)['checkpoint']['uri']}")
        return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    made = Demo(tmp_path_factory.mktemp("demo"))
    made.train()
    return made


def test_each_stage_did_its_job(demo: Demo) -> None:
    metrics = demo.metrics
    share = {name: metrics[name]["eval/score"] for name in ("sft", "ppo", "dpo")}
    assert metrics["reward"]["eval/accuracy"] >= 0.9
    assert share["ppo"] >= share["sft"] + 0.25
    assert share["dpo"] >= share["sft"] + 0.25
    assert metrics["sft"]["eval/base_score"] < share["sft"]


def test_policies_stay_near_their_reference(demo: Demo) -> None:
    assert 0 < demo.metrics["ppo"]["ppo/kl"] < 5
    assert 0 < demo.metrics["dpo"]["eval/kl"] < 5


def test_every_stage_ends_with_a_model_that_transformers_loads(demo: Demo) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    for stage in ("sft", "ppo", "dpo"):
        model = AutoModelForCausalLM.from_pretrained(demo.output(stage))
        tokenizer = AutoTokenizer.from_pretrained(demo.output(stage))
        assert model.config.vocab_size == len(tokenizer)
        assert tokenizer.chat_template
    reward = AutoModelForSequenceClassification.from_pretrained(demo.output("reward"))
    assert reward.config.num_labels == 1


def test_the_status_is_the_one_a_cluster_would_show(demo: Demo) -> None:
    assert demo.status["phase"] == "Succeeded"
    assert demo.condition("Ready")[0] == "True"
    assert "Stalled" not in {c["type"] for c in demo.status["conditions"] if c["status"] == "True"}
    for name in STAGES:
        stage = demo.stage(name)
        assert stage["phase"] == "Succeeded"
        assert stage["startTime"] <= stage["completionTime"]
        assert stage["metrics"]


def test_the_report_shows_every_model_and_needs_nothing_else(demo: Demo) -> None:
    report = (demo.directory / "report.html").read_text()
    assert "<svg" in report
    for word in ("Base", "SFT", "PPO", "DPO"):
        assert word in report
    for tag in ('src="http', 'href="http', "@import"):
        assert tag not in report


def test_each_model_answered_the_same_prompts(demo: Demo) -> None:
    asked: dict[str, list[Any]] = {}
    for stage in ("sft", "ppo", "dpo"):
        rows = (demo.output(stage).parent / "samples.jsonl").read_text().splitlines()
        for row in map(json.loads, rows):
            asked.setdefault(row["model"], []).append(row["id"])
    assert set(asked) == {"base", "sft", "ppo", "dpo"}
    assert len({tuple(ids) for ids in asked.values()}) == 1


def test_the_trained_model_answers(demo: Demo) -> None:
    chat = demo.start("chat", str(demo.directory), stdin=subprocess.PIPE)
    answered, said = chat.communicate("What colour is a lemon?\n/exit\n", timeout=300)
    assert chat.returncode == 0, said
    assert answered.strip()


def test_a_second_run_trains_nothing_and_tells_the_same(demo: Demo) -> None:
    before = demo.status["stages"]
    said = demo.train()
    assert demo.status["stages"] == before
    assert str((demo.directory / "report.html").relative_to(demo.folder)) in said
