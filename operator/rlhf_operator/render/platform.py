"""What a rendering depends on besides the job: the cluster it is for."""

from __future__ import annotations

from typing import Final, NamedTuple

PROGRESS_AUDIENCE: Final = "rlhf.dev/progress"
"""Audience of the token that pods show the progress server; valid for nothing else."""


class Platform(NamedTuple):
    """The cluster, or the one machine, that the objects are for."""

    served: frozenset[str] = frozenset()
    """Kinds the API server serves, as ``group/version/Kind``: what gang `auto` picks by."""
    gang_order: tuple[str, ...] = ("volcano", "kai", "koordinator", "coscheduling", "native")
    """Which gang scheduler `auto` prefers where several are served."""
    progress_url: str | None = None
    """Address of the progress server; None: trainers report in their termination message only."""
    coscheduling_profile: str = "scheduler-plugins-scheduler"
    """Name of the scheduler profile that has the coscheduling plug-in."""


ANY_CLUSTER: Final = Platform()
"""One of which nothing is known."""
