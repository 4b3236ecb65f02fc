"""What a rendering depends on besides the job: the cluster it is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from rlhf_api.affinity import Toleration

PROGRESS_AUDIENCE: Final = "rlhf.dev/progress"
"""Audience of the token that pods show the progress server; valid for nothing else."""


class Defaults(NamedTuple):
    """What a cluster's administrator gives to jobs that do not say; part of no stage's identity."""

    image: str | None = None
    """Trainer image."""
    queue: str | None = None
    storage_class: str | None = None
    """StorageClass of claims that are made for checkpoints."""
    node_selector: Mapping[str, str] = {}
    """Labels of the nodes that have devices; a job's own value of a label wins."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of the nodes that have devices; added to a job's own."""


class Platform(NamedTuple):
    """The cluster, or the one machine, that the objects are for."""

    served: frozenset[str] = frozenset()
    """Kinds the API server serves, as ``group/version/Kind``: what gang `auto` picks by."""
    gang_order: tuple[str, ...] = (
        "volcano",
        "kai",
        "koordinator",
        "coscheduling",
        "kueue",
        "native",
    )
    """Which gang scheduler `auto` prefers where several are served."""
    progress_url: str | None = None
    """Address of the progress server; None: trainers report in their termination message only."""
    progress_authority: str | None = None
    """Certificates, as PEM, by which trainers know it; None: those that their image trusts."""
    coscheduling_profile: str = "scheduler-plugins-scheduler"
    """Name of the scheduler profile that has the coscheduling plug-in."""
    defaults: Defaults = Defaults()
    is_one_machine: bool = False
    """Whether pods are processes of the user's own: paths, home and credentials are theirs."""


ANY_CLUSTER: Final = Platform()
"""One of which nothing is known."""
