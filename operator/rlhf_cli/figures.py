"""The few numbers that say how a stage did, and how numbers are shown."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from rlhf_api.job import RLHFJob
from rlhf_api.run import PREPARE
from rlhf_api.status import GPUSeconds, JobStatus

TITLES: Final = {
    PREPARE: "Prepare",
    "base": "Base",
    "sft": "SFT",
    "reward": "Reward model",
    "ppo": "PPO",
    "dpo": "DPO",
}
SHORT_TITLES: Final = TITLES | {"reward": "Reward"}

MODELS: Final = ("base", "sft", "ppo", "dpo")
"""Those that answer prompts, in the order of the pipeline."""
OF_BASE: Final = "eval/base_score"
"""Metric of the first stage, which still has the base model."""

KEY_FIGURES: Final[dict[str, dict[str, str]]] = {
    "sft": {"eval/loss": "held-out loss", "train/loss": "loss", "eval/score": "score"},
    "reward": {
        "eval/accuracy": "held-out accuracy",
        "train/accuracy": "accuracy",
        "train/loss": "loss",
    },
    "ppo": {
        "ppo/reward": "reward",
        "ppo/kl": "KL",
        "ppo/response_length": "length",
        "eval/score": "score",
    },
    "dpo": {
        "eval/accuracy": "held-out accuracy",
        "train/loss": "loss",
        "dpo/margin": "margin",
        "eval/kl": "KL",
        "eval/score": "score",
    },
}
"""Metrics that stand for a stage, most telling first, and what to call them."""

INSTEAD: Final = {"train/loss": "eval/loss", "train/accuracy": "eval/accuracy"}
"""At the end the held-out figure stands in place of the training one; before, that one moves."""


def key_figures(
    stage: str, metrics: Mapping[str, float], most: int = 4, *, is_final: bool = True
) -> list[tuple[str, str]]:
    """Label and value of the figures that stand for a stage."""
    return [
        (label, figure_text(metrics[name]))
        for name, label in KEY_FIGURES.get(stage, {}).items()
        if name in metrics and not (is_final and INSTEAD.get(name) in metrics)
    ][:most]


def model_scores(job: RLHFJob) -> dict[str, float]:
    """The user's judge's mean score of each model that it has judged, in the order of MODELS: an
    API server gives stages by name."""
    metrics = {name: stage.metrics for name, stage in job.stage_statuses().items()}
    of_base = [values[OF_BASE] for values in metrics.values() if OF_BASE in values]
    found = {"base": of_base[0]} if of_base else {}
    judged = (name for name in MODELS if "eval/score" in metrics.get(name, {}))
    return found | {name: metrics[name]["eval/score"] for name in judged}


def device_time(status: JobStatus) -> str:
    """`useful 2:00:00   repeated 1:05   waiting 0:10`: what the devices of all ended attempts were
    used for; empty where there were none."""
    sums = [stage.gpu_seconds for stage in status.stages.values() if stage.gpu_seconds]
    if not sums:
        return ""
    spent = {name: sum(getattr(one, name) for one in sums) for name in GPUSeconds.model_fields}
    return "   ".join(f"{name} {duration(seconds)}" for name, seconds in spent.items())


def figure_text(value: float) -> str:
    """Three significant digits, without an exponent where that can be read."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = (
            0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
        )
        return f"{value:,.{digits}f}"
    return f"{value:.2e}"


def duration(seconds: float) -> str:
    """1:05 or 2:03:04."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def between(start: str | None, end: str | None) -> float | None:
    """Seconds between two RFC 3339 times."""
    if not start or not end:
        return None
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
