"""Metrics that are out of the bounds that the job itself names, while a stage still runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from rlhf_api.job import RLHFJob
from rlhf_api.stages import PPOStage

KL: Final = "ppo/kl"
NEAR_LIMIT: Final = 0.8
"""Share of `maxKl` from which on the stop rule is about to end the stage."""
OFF_TARGET: Final = 2.0
"""Times the adaptive controller's target from which on it has lost hold."""
HYSTERESIS: Final = 0.9
"""Share of the bound under which an alarm ends, so that noise about the bound is one alarm."""


ALARMS: Final = {
    "KLNearLimit": f"KL is above {NEAR_LIMIT:.0%} of maxKl, at which the stage ends",
    "KLOffTarget": f"KL is more than {OFF_TARGET:g} times kl.adaptive.target",
}
"""Each alarm in words."""


class Bound(NamedTuple):
    """An alarm: its name, the metric, and what is too much."""

    alarm: str
    metric: str
    highest: float


def bounds(job: RLHFJob, stage: str) -> list[Bound]:
    """The alarms of a stage."""
    config = job.spec.stages.present().get(stage)
    if not isinstance(config, PPOStage):
        return []
    found = []
    if config.max_kl is not None:
        found.append(Bound("KLNearLimit", KL, NEAR_LIMIT * config.max_kl))
    if config.kl.adaptive is not None:
        found.append(Bound("KLOffTarget", KL, OFF_TARGET * config.kl.adaptive.target))
    return found


def raised(
    job: RLHFJob, stage: str, before: Sequence[str], metrics: Mapping[str, float]
) -> list[str]:
    """The alarms that hold now; `before`: those that held at the last look."""
    return [
        bound.alarm
        for bound in bounds(job, stage)
        if metrics.get(bound.metric, 0.0)
        > bound.highest * (HYSTERESIS if bound.alarm in before else 1.0)
    ]
