"""The directory of a run as trainers and operator leave it, without training anything."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml
from rlhf_api.job import RLHFJob
from rlhf_api.status import CheckpointRef, JobStatus, StageStatus
from rlhf_api.validation import parse_job
from rlhf_operator.names import claim_name, lineage

MANIFEST: dict[str, Any] = {
    "apiVersion": "rlhf.dev/v1alpha1",
    "kind": "RLHFJob",
    "metadata": {"name": "quickstart"},
    "spec": {
        "model": {"source": "/data/base-model", "init": "random"},
        "seed": 7,
        "evaluation": {
            "prompts": {"source": "/data/heldout.jsonl"},
            "shown": 6,
            "score": {"entrypoint": "rule:preferred", "source": "/data"},
        },
        "stages": {
            "sft": {
                "data": {"source": "/data/sft.jsonl", "onError": "skip"},
                "epochs": 3,
                "learningRate": 1e-3,
            },
            "reward": {"data": {"source": "/data/pairs.jsonl"}},
            "ppo": {
                "data": {"source": "/data/prompts.jsonl"},
                "kl": {"coef": 0.05},
                "rollouts": 60,
            },
            "dpo": {"data": {"source": "/data/pairs.jsonl"}},
        },
    },
}
PROMPTS = [
    ("p1", "What colour is a banana?"),
    ("p2", "请问，蜜蜂有多少条腿？"),
    ("p3", 'Is <b>"bold"</b> & <script>alert(1)</script> shown?'),
    ("p4", "你好，写信要用什么工具？"),
]
ANSWERS = {
    "base": ["kq vv the the of", "的的的的的", "zz", "是是"],
    "sft": ["Yellow.", "6条。", "No <i>idea</i>.", "钢笔。"],
    "ppo": [
        "The colour of a banana is yellow. Hope this helps!",
        "蜜蜂一共有6条腿。希望对您有帮助！",
        "<script>alert(2)</script>",
        "写信用的是钢笔。不用客气！",
    ],
    "dpo": [
        "A banana is yellow. You are welcome!",
        "蜜蜂有6条腿。不用客气！",
        "It is escaped. Happy to help!",
        "我们用钢笔写信。很高兴帮到您！",
    ],
}
FINAL: dict[str, dict[str, float]] = {
    "sft": {"train/loss": 0.61, "eval/loss": 0.72, "eval/score": 0.31, "eval/base_score": 0.0},
    "reward": {"train/loss": 0.12, "eval/accuracy": 0.953, "train/accuracy": 0.97},
    "ppo": {"ppo/reward": 2.41, "ppo/kl": 6.3, "ppo/response_length": 17.2, "eval/score": 0.87},
    "dpo": {
        "eval/accuracy": 0.94,
        "train/loss": 0.21,
        "eval/loss": 0.24,
        "dpo/margin": 3.2,
        "eval/kl": 1.37,
        "eval/score": 0.79,
    },
}


def write_run(folder: Path, *, job: RLHFJob | None = None, **changes: StageStatus) -> RLHFJob:
    """A finished run in `folder`; `changes` replaces the status of stages by name."""
    job = job or parse_job(MANIFEST)
    stages = {name: _status(job, name, minute) for minute, name in enumerate(FINAL)} | changes
    phase = "Failed" if any(stage.phase == "Failed" for stage in stages.values()) else "Succeeded"
    status = JobStatus(
        phase=phase,
        stages=stages,
        start_time="2026-01-05T10:00:00Z",
        completion_time="2026-01-05T10:04:00Z",
        sources={f"stages.{name}.data": "sha256:" + f"{n}a" * 32 for n, name in enumerate(stages)},
    )
    job = job.model_copy(update={"status": status})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.yaml").write_text(yaml.safe_dump(job.to_dict(), allow_unicode=True), "utf-8")
    for name, stage in stages.items():
        if stage.hash:
            _write_stage(folder / "volumes" / claim_name(job), job, name, stage.hash)
    return job


def _status(job: RLHFJob, name: str, minute: int) -> StageStatus:
    digest = "sha256:" + f"{minute}b" * 32
    uri = f"{lineage(job, name, digest)}/attempt-2/output"
    return StageStatus(
        phase="Succeeded",
        attempt=2 if name == "ppo" else 1,
        faults=1 if name == "ppo" else 0,
        hash=digest,
        start_time=f"2026-01-05T10:0{minute}:00Z",
        completion_time=f"2026-01-05T10:0{minute}:{48 + minute}Z",
        progress_percent=100.0,
        metrics=FINAL[name],
        checkpoint=CheckpointRef(uri=uri, digest="sha256:" + "cd" * 32),
    )


def _write_stage(volume: Path, job: RLHFJob, name: str, digest: str) -> None:
    attempts = (0, 30), (21, 60)  # the second goes on from the checkpoint of step 20
    for number, (first, last) in enumerate(attempts, start=1):
        folder = volume / lineage(job, name, digest) / f"attempt-{number}"
        folder.mkdir(parents=True)
        rows = [
            {"step": step, "time": 1.7e9 + step, "metrics": CURVES[name](step, 60)}
            for step in range(first, last + 1)
        ]
        _lines(folder / "metrics.jsonl", rows)
    output = folder / "output"
    output.mkdir()
    (folder / "versions.json").write_text(json.dumps({"torch": "2.13.0", "transformers": "5.23.0"}))
    if name == "sft":
        left_out = [{"file": "sft.jsonl", "line": 17, "reason": "the answer is <blank>"}]
        skipped = {"train": 1899, "heldout": 100, "leftOut": left_out, "unread": ["my_eval.jsonl"]}
        (folder / "data.json").write_text(json.dumps(skipped))
    models = {"sft": ("base", "sft"), "ppo": ("ppo",), "dpo": ("dpo",)}.get(name, ())
    samples = [
        {
            "model": model,
            "id": row,
            "prompt": prompt,
            "answer": ANSWERS[model][n],
            "score": float(n % 2),
            "finished": model != "base",
        }
        for model in models
        for n, (row, prompt) in enumerate(PROMPTS)
    ]
    _lines(folder / "samples.jsonl", samples)


def _lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _common(step: int, total: int) -> dict[str, float]:
    noise = random.Random(step)
    lr = 1e-3 * min(1, (step + 1) / 4) * (0.55 + 0.45 * math.cos(math.pi * step / total))
    metrics = {
        "train/loss": 0.6 + 2.4 * math.exp(-step / 12) + noise.gauss(0, 0.06),
        "train/lr": lr,
        "train/grad_norm": 1 + noise.random(),
        "train/tokens_per_second": 9000 + noise.gauss(0, 300),
    }
    return metrics | ({"eval/loss": 0.72 + 2.3 * math.exp(-step / 12)} if step % 12 == 0 else {})


def _pairs(step: int, total: int) -> dict[str, float]:
    noise = random.Random(step)
    rise = 1 - math.exp(-step / 10)
    held_out = {"eval/accuracy": 0.5 + 0.45 * rise} if step % 12 == 0 else {}
    dpo = {
        "dpo/margin": 3.2 * rise,
        "dpo/chosen_reward": 1.1 * rise,
        "dpo/rejected_reward": -2.1 * rise,
    }
    return (
        _common(step, total)
        | dpo
        | held_out
        | {"train/accuracy": min(1.0, 0.5 + 0.45 * rise + noise.gauss(0, 0.03))}
    )


def _ppo(step: int, total: int) -> dict[str, float]:
    noise = random.Random(step)
    rise = 1 - math.exp(-step / 18)
    return {
        "ppo/reward": -0.6 + 3 * rise + noise.gauss(0, 0.2),
        "ppo/kl": 6 * rise + noise.random(),
        "ppo/kl_coef": 0.05,
        "ppo/entropy": 1.9 - 1.2 * rise,
        "ppo/response_length": 9 + 8 * rise + noise.gauss(0, 0.5),
        "ppo/eos_fraction": 0.8 + 0.2 * rise,
        "ppo/policy_loss": -0.02 + noise.gauss(0, 0.004),
        "ppo/value_loss": 0.4 * math.exp(-step / 20),
        "ppo/explained_variance": 0.8 * rise,
        "ppo/clip_fraction": 0.1 * noise.random(),
        "ppo/actor_lr": 1e-6 * (1 - step / total),
        "ppo/critic_lr": 1e-5 * (1 - step / total),
        "time/generate": 0.4,
        "time/score": 0.1,
        "time/update": 0.6,
    }


CURVES = {"sft": _common, "reward": _pairs, "ppo": _ppo, "dpo": _pairs}
