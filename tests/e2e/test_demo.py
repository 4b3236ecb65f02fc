"""`make demo` as README promises it: the pipeline trains, and each stage did its job."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]


class Demo:
    """What `make demo` runs, in a directory where nobody's runs are."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shutil.copytree(REPOSITORY / "examples", directory / "examples")
        shown = subprocess.run(
            [
                "make",
                "--just-print",
                "--directory",
                str(REPOSITORY),
                "--no-print-directory",
                "demo",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        self._program, *self._arguments = shlex.split(shown.stdout.splitlines()[-1])
        assert Path(self._program).name == "rlhfctl"

    def run(self) -> str:
        """Its output."""
        done = subprocess.run(
            [sys.executable, "-m", "rlhf_cli", *self._arguments],
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        (file,) = self.directory.glob("runs/*/status.yaml")
        stages: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text())["status"]["stages"]
        return stages


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    made = Demo(tmp_path_factory.mktemp("demo"))
    made.run()
    return made


def test_each_stage_did_its_job(demo: Demo) -> None:
    metrics = {name: stage["metrics"] for name, stage in demo.stages.items()}
    share = {name: metrics[name]["eval/score"] for name in ("sft", "ppo", "dpo")}
    assert metrics["reward"]["eval/accuracy"] >= 0.9
    assert share["ppo"] >= share["sft"] + 0.25
    assert share["dpo"] >= share["sft"] + 0.25
    assert metrics["sft"]["eval/base_score"] < share["sft"]


def test_policies_stay_near_their_reference(demo: Demo) -> None:
    metrics = {name: stage["metrics"] for name, stage in demo.stages.items()}
    assert 0 < metrics["ppo"]["ppo/kl"] < 5
    assert 0 < metrics["dpo"]["eval/kl"] < 5


def test_a_second_run_trains_nothing_and_tells_the_same(demo: Demo) -> None:
    before = demo.stages
    said = demo.run()
    assert demo.stages == before
    (report,) = demo.directory.glob("runs/*/report.html")
    assert str(report.relative_to(demo.directory)) in said
