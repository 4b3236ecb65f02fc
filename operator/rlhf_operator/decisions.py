"""What a stage is to do, and all that is known of it when that is decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, Literal, NamedTuple

from rlhf_api.job import RLHFJob
from rlhf_api.status import FinishedRun, StageStatus

from rlhf_operator.inputs import Wanted
from rlhf_operator.observed import Attempt, numbered
from rlhf_operator.pausing import Pause

Verdict = Literal[
    "Succeeded",  # its result is there
    "Begin",  # a new attempt is to be written down
    "Create",  # the attempt that was written down needs its children, or has just got them
    "Pending",  # its children are there, and not all of its pods run yet
    "Running",  # its children are there
    "Stop",  # its children are of no use any more
    "Waiting",  # something that is under way has to happen first
    "Blocked",  # somebody has to change something first
    "Failed",  # it has ended, and will not be tried again
]

HELD_UP: Final = ("NodeLost", "ContainersLeft")
"""Reasons for which a stage that runs does not go on."""
TOLD: Final = (*HELD_UP, "LabelsLost")
"""Of a stage that runs: those that are a warning."""


class Decision(NamedTuple):
    """What is to happen to a stage, and why."""

    verdict: Verdict
    reason: str
    message: str = ""


class Context(NamedTuple):
    """All that is known of a stage when it is decided."""

    job: RLHFJob
    stage: str
    status: StageStatus  # ends counted
    attempts: tuple[Attempt, ...]  # what is left of each, oldest first
    sources_are_known: bool
    wanted: Wanted | None  # None: not known yet, or the parents' outputs are not there
    parents: Mapping[str, Decision]  # by stage; those whose output it takes
    parent_runs: Mapping[str, FinishedRun]
    prepare: Decision | None  # None: this is prepare
    pause: Pause | None  # of the whole job
    directory: str  # of a run on this machine; empty on a cluster
    now: datetime

    @property
    def is_current(self) -> bool:
        """Whether the newest attempt worked on what is wanted now."""
        return self.wanted is not None and self.wanted == (self.status.hash, self.status.settings)

    @property
    def current(self) -> Attempt | None:
        """What is left of the newest attempt."""
        return numbered(self.attempts, self.status.attempt)


Policy = Callable[[Context], Decision | None]
