"""The quickstart job, cut to seconds, for a cluster: its sources are on a claim."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import warm
import yaml

Object = dict[str, Any]
REPOSITORY = Path(__file__).parents[2]
CLAIM = "datasets"
DEVICE = "amd.com/gpu"
NAME = "quickstart"
ON_THE_CPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
"""Nodes say that they have devices; what trains is this machine's processor."""

TWO_PROCESSES = ("nodes=1", "gpusPerNode=0", "processesPerNode=2")
"""What a gang of two nodes is on one machine: as many ranks, and so the same sums of floats."""


def manifest() -> Object:
    """All stages take one device, but PPO: a gang of two nodes."""
    made: Object = yaml.safe_load((REPOSITORY / "examples/quickstart.yaml").read_text())
    spec = made["spec"]
    spec["resources"] = {"gpusPerNode": 1, "device": DEVICE}
    spec["env"] = [{"name": "OMP_NUM_THREADS", "value": "1"}]
    spec["evaluation"]["limit"] = 4
    stages = spec["stages"]
    for name in ("sft", "reward", "dpo"):
        stages[name] |= {"maxSteps": 2}
        stages[name]["data"]["limit"] = 100
    stages["ppo"] |= {
        "rollouts": 6,
        "globalBatchSize": 16,
        "minibatchSize": 16,
        "microBatchSize": 8,
        "checkpointing": {"everySteps": 1},
        "resources": {"nodes": 2},
        "retry": {"backoffSeconds": 1},
    }
    sources = [spec["model"], spec["evaluation"]["prompts"], spec["evaluation"]["score"]]
    for source in [*sources, *(stage["data"] for stage in stages.values())]:
        source["source"] = f"pvc://{CLAIM}/{source['source']}"
    return made


def fill(volume: Path) -> None:
    """Puts what the manifest names on a volume."""
    for folder in ("base-model", "data", "judge"):
        shutil.copytree(REPOSITORY / "examples" / folder, volume / folder)


def results(status: Object) -> dict[str, tuple[str, str]]:
    """What each stage was made from, and what it made."""
    return {
        name: (stage["hash"], stage["checkpoint"]["digest"])
        for name, stage in status["stages"].items()
    }


def digest_of(output: Path) -> str:
    """As a status would show it."""
    return f"sha256:{hashlib.sha256((output / 'manifest.json').read_bytes()).hexdigest()}"


class OneMachine:
    """The same manifest, run by `rlhfctl run`."""

    def __init__(self, directory: Path) -> None:
        self._manifest = directory / "job.yaml"
        self._manifest.write_text(yaml.safe_dump(manifest()))
        self._run = directory / "run"
        fill(self._run / "volumes" / CLAIM)

    def train(self, *more: str) -> Object:
        """Runs what has not been run yet; the status."""
        gang = [f"--set=spec.stages.ppo.resources.{setting}" for setting in TWO_PROCESSES]
        command = ["run", str(self._manifest), "--dir", str(self._run), *gang, *more]
        done = subprocess.run(
            warm.command("rlhf_cli", *command),
            env={**os.environ, **ON_THE_CPU, **warm.trainers()},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        status: Object = yaml.safe_load((self._run / "status.yaml").read_text())["status"]
        return status

    def train_without_the_first_row(self, *more: str) -> Object:
        """As `train`, after a change of SFT's data."""
        data = self._run / "volumes" / CLAIM / "data" / "sft.jsonl"
        rows = data.read_text(encoding="utf-8").splitlines(keepends=True)
        data.write_text("".join(rows[1:]), encoding="utf-8")
        return self.train(*more)
