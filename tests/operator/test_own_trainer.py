"""A stage whose trainer is not ours: torchrun and a script that knows nothing but the contract."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rlhf_operator.local.machine import Machine
from test_local import Bench, bench, status_of

__all__ = ["bench"]

TRAINER = """
import hashlib, json, os, pathlib, yaml

rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
pathlib.Path(f"checkpoints/rank-{rank}-of-{world}").touch()
if rank == 0:
    run = yaml.safe_load(open("config/stage.yaml"))
    output = pathlib.Path(run["output"], "output")
    output.mkdir(parents=True)
    manifest = output / "manifest.json"
    manifest.write_text("{}")
    digest = "sha256:" + hashlib.sha256(manifest.read_bytes()).hexdigest()
    checkpoint = {"uri": str(output.relative_to("checkpoints")), "digest": digest}
    result = {"exitCode": 0, "reason": "Done", "checkpoint": checkpoint, "metrics": {"loss": 0.5}}
    pathlib.Path("termination/message.json").write_text(json.dumps(result))
"""


@pytest.mark.slow
def test_torchrun_finds_its_ranks_and_its_result_is_the_stages(bench: Bench) -> None:
    script = bench.path / "train.py"
    script.write_text(TRAINER)
    own = {
        "image": "registry/other:1",
        "command": ["python", "-m", "torch.distributed.run", str(script)],
        "resources": {"processesPerNode": 2},
    }
    job = bench.run(bench.job(sft=own), machine=Machine(2))
    assert status_of(job) == dict.fromkeys(("sft", "reward", "ppo", "dpo"), ("Succeeded", 1))
    assert "sft" not in bench.stages()  # our trainer never ran it
    assert job.status is not None
    assert job.status.stages["sft"].metrics == {"loss": 0.5}
    ranks = {path.name for path in _volume(bench).glob("rank-*")}
    assert ranks == {"rank-0-of-2", "rank-1-of-2"}
    reward = next(entry for entry in bench.started() if entry["stage"] == "reward")
    assert json.dumps(reward["inputs"]) == json.dumps({"base": True, "policy": True})


def _volume(bench: Bench) -> Path:
    (volume,) = (bench.directory / "volumes").iterdir()
    return volume
