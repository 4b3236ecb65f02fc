"""How the pods of a stage get onto nodes together."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from rlhf_api.base import Contract, Name

GangScheduler = Literal[
    "auto", "none", "volcano", "coscheduling", "koordinator", "kai", "kueue", "native"
]
WITH_QUEUES: Final = ("auto", "volcano", "kai", "kueue")
"""Those that read a queue; `auto` may choose one of them."""


class Scheduling(Contract):
    """Gang scheduling and queues."""

    gang: GangScheduler = Field(
        default="auto",
        description="Gang scheduler; `auto` is what the API server serves, in the cluster's order.",
    )
    queue: Name | None = Field(
        default=None, description="Queue of Volcano or KAI, LocalQueue of Kueue."
    )
