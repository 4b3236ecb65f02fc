"""The few values at the top of a status that `kubectl get rlhfjobs` shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rlhf_api.status import StageStatus

from rlhf_operator.decisions import Decision, Verdict

UNDER_WAY: Final[tuple[Verdict, ...]] = ("Running", "Pending", "Create", "Begin", "Stop")

REWARD: Final = ("ppo/reward", "reward", "train/reward", "objective/rlhf_reward")
KL: Final = ("ppo/kl", "kl", "train/kl", "objective/kl")
"""Names that our trainer gives, then those of TRL's trainers."""


def columns(decisions: Mapping[str, Decision], stages: Mapping[str, StageStatus]) -> dict[str, Any]:
    """Values of JobStatus's fields. `decisions`: prepare first, then the stages in their order."""
    names = _shown(decisions)
    shown = [stages[name] for name in names]
    later_first = [
        *reversed(shown),
        *(stages[n] for n in reversed(list(decisions)) if n not in names),
    ]
    holders = [stages[n] for n, d in decisions.items() if d.verdict in ("Running", "Pending")]
    return {
        "stage": _place(names, list(decisions)),
        "progress": _progress(shown),
        "eta": _eta(shown),
        "reward": _newest(later_first, REWARD),
        "kl": _newest(later_first, KL),
        "gpus": sum(stage.gpus for stage in holders),
        "restarts": sum(sum(stage.restarts.values()) for stage in stages.values()),
        "checkpoint": _newest_output(reversed(list(stages.values()))),
    }


def _shown(decisions: Mapping[str, Decision]) -> list[str]:
    """All stages that train; else the one that starts, failed or is next; none if all is done."""
    training = [name for name, item in decisions.items() if item.verdict == "Running"]
    if training:
        return training
    for verdicts in (UNDER_WAY, ("Failed",), ("Blocked", "Waiting")):
        if found := [name for name, item in decisions.items() if item.verdict in verdicts]:
            return found[:1]
    return []


def _place(names: Sequence[str], order: Sequence[str]) -> str:
    """`ppo+dpo 3/4`; prepare is not counted."""
    total = len(order) - 1
    if not names:
        return f"{total}/{total}"
    return f"{'+'.join(names)} {order.index(names[0])}/{total}"


def _progress(shown: Sequence[StageStatus]) -> str | None:
    if not shown:
        return "100%"
    known = [stage.progress_percent for stage in shown if stage.progress_percent is not None]
    return f"{sum(known) / len(shown):.0f}%" if known else None


def _eta(shown: Sequence[StageStatus]) -> str | None:
    known = [s.remaining_seconds for s in shown if s.remaining_seconds is not None]
    return _short_time(max(known)) if known else None


def _short_time(seconds: float) -> str:
    """Two units at most, as kubectl shows ages: 45s, 12m, 2h10m, 3d4h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)}s"
    if minutes < 60:
        return f"{minutes}m"
    if minutes < 48 * 60:
        return f"{minutes // 60}h{minutes % 60}m" if minutes % 60 else f"{minutes // 60}h"
    hours = round(minutes / 60)
    return f"{hours // 24}d{hours % 24}h" if hours % 24 else f"{hours // 24}d"


def _newest(stages: Sequence[StageStatus], names: Sequence[str]) -> float | None:
    for stage in stages:
        for name in names:
            if name in stage.metrics:
                return float(f"{stage.metrics[name]:.4g}")  # a column, not a record
    return None


def _newest_output(stages: Iterable[StageStatus]) -> str | None:
    done = [s for s in stages if s.checkpoint and s.completion_time]
    newest = max(done, key=lambda stage: stage.completion_time or "", default=None)
    return newest.checkpoint.uri if newest and newest.checkpoint else None
