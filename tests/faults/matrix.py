"""What clusters and people do to a job, in each phase that it goes through: the table.

A cell is a phase, what happens in it, and whether an operator is there meanwhile.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Operator = Literal["up", "down"]
"""Whether one runs while it happens; afterwards one does in any case."""
End = Literal["Ready", "Stalled", "gone"]
Effect = Literal[
    "nothing",
    "disruption",
    "cleared",
    "fault",
    "final",
    "stop",
    "meaning",
    "settings",
    "back",
    "silence",
]


class Phase(NamedTuple):
    """Where a job is when it happens."""

    stage: str  # the one that is struck
    held: tuple[str, ...] = ()  # stages whose first attempt runs until it is let go
    is_live: bool = False  # the struck attempt has pods that have not ended
    runs: bool = False  # and they run


PHASES: Final = {
    "prepare": Phase("prepare", ("prepare",), is_live=True, runs=True),
    "waiting for devices": Phase("sft", is_live=True),
    "image not pulled": Phase("sft", ("sft",), is_live=True),
    "running": Phase("sft", ("sft",), is_live=True, runs=True),
    "ended, not counted": Phase("sft", ("sft",)),
    "between stages": Phase("sft"),  # a gate waits for a person
    "beside dpo": Phase("reward", ("reward", "dpo"), is_live=True, runs=True),
    "backoff": Phase("sft", ("sft",)),
    "suspended": Phase("sft", ("sft",)),
    "finished": Phase("sft"),
}


class Happening(NamedTuple):
    """Something that is done to a job from outside."""

    effect: Effect
    needs: Literal["", "pods", "runs", "node"] = ""
    end: End = "Ready"


HAPPENINGS: Final = {
    "nothing": Happening("nothing"),
    "pod evicted": Happening("disruption", "runs"),
    "pod killed for its memory": Happening("fault", "runs"),
    "pod fails": Happening("fault", "runs"),
    "pod finds bad configuration": Happening("final", "runs", "Stalled"),
    "pod deleted": Happening("disruption", "pods"),
    "pod deleted at once": Happening("disruption", "pods"),
    "every pod deleted": Happening("disruption", "pods"),
    "pod that has succeeded is cleared away": Happening("cleared", "runs"),
    "node drained": Happening("disruption", "node"),
    "pod preempted": Happening("disruption", "node"),
    "node lost": Happening("disruption", "node"),
    "Job deleted": Happening("disruption", "pods"),
    "Job deleted in the foreground": Happening("disruption", "pods"),
    "Job deleted without its pods": Happening("disruption", "pods"),
    "ConfigMap deleted": Happening("nothing", "pods"),
    "Service deleted": Happening("nothing", "pods"),
    "PodGroup deleted": Happening("nothing", "pods"),
    "suspended": Happening("stop"),
    "epochs edited": Happening("meaning"),
    "micro-batch edited": Happening("settings"),
    "edited and put back": Happening("back"),
    "dpo removed": Happening("nothing"),
    "API server away": Happening("nothing"),
    "API server silent": Happening("nothing"),
    "API server killed": Happening("nothing"),
    "etcd stopped": Happening("silence"),
    "deleted": Happening("nothing", end="gone"),
    "deleted and made again": Happening("nothing"),
}


class Cell(NamedTuple):
    """One field of the table."""

    phase: str
    happening: str
    operator: Operator

    def __str__(self) -> str:
        return f"{self.phase}: {self.happening}, operator {self.operator}"


class Counts(NamedTuple):
    """What the struck stage may have counted in the end."""

    attempts: set[int]
    faults: set[int]
    disruptions: set[int]


AWAY: Final = ("API server away", "API server silent")
"""To the operator alone, which then loses its lease; what trains may end meanwhile."""

STORMS: Final = ("API server killed", "etcd stopped")
"""To all at once: the Job controller, the scheduler and the kubelets have lost it, too."""

SAMPLE: Final = (
    Cell("running", "API server away", "up"),
    Cell("running", "pod evicted", "up"),
    Cell("running", "pod that has succeeded is cleared away", "up"),
    Cell("running", "suspended", "up"),
    Cell("running", "Job deleted", "down"),
    Cell("running", "deleted", "down"),
    Cell("ended, not counted", "every pod deleted", "down"),
)
"""For every run."""


def cells(phase: str) -> list[Cell]:
    """All of a phase."""
    operators: tuple[Operator, ...] = ("up", "down")
    happenings = [name for name in HAPPENINGS if name not in STORMS]
    found = [Cell(phase, name, of) for name in happenings for of in operators]
    return [cell for cell in found if is_possible(cell)]


def storm(happening: str) -> list[Cell]:
    """One that strikes a job in each phase at the same time."""
    found = [Cell(phase, happening, "up") for phase in PHASES]
    return [cell for cell in found if is_possible(cell)]


def is_possible(cell: Cell) -> bool:
    """Whether there is such a thing."""
    phase, happening = PHASES[cell.phase], HAPPENINGS[cell.happening]
    if cell.operator == "up" and (cell.happening == "nothing" or cell.phase == SEEN_BY_NOBODY):
        return False
    match happening.needs:
        case "pods":
            is_there = cell.phase != "suspended"  # they are gone by then
        case "runs":
            is_there = phase.runs
        case "node":
            is_there = phase.runs
        case _:
            is_there = True
    return is_there and not (phase.stage == "prepare" and cell.happening in NOT_OF_PREPARE)


NOT_OF_PREPARE: Final = ("Service deleted", "PodGroup deleted", "pod preempted")
SEEN_BY_NOBODY: Final = "ended, not counted"
UNDISTURBED: Final = {
    "backoff": Counts({2}, {1}, {0}),
    "suspended": Counts({2}, {0}, {0}),
}
ONCE: Final = Counts({1}, {0}, {0})
STOPPED: Final = Counts({2}, {0}, {0})


def counts(cell: Cell) -> Counts:
    """What the struck stage is to have counted in the end."""
    phase, effect = PHASES[cell.phase], HAPPENINGS[cell.happening].effect
    calm = UNDISTURBED.get(cell.phase, ONCE)
    if cell.happening == "deleted and made again":
        return ONCE
    if _is_disrupted(cell):
        return Counts({2}, {0}, {1})
    match effect:
        case "disruption" if cell.phase == SEEN_BY_NOBODY:  # unless its pods are still to be seen
            return Counts({1, 2}, {0}, {0, 1})
        case "fault":
            return Counts({2}, {1}, {0})
        case "silence" if phase.is_live:  # of nodes, whose pods are taken from them or are not
            return Counts({1, 2}, {0}, {0, 1})
        case "final":
            return Counts({1}, {0, 1}, {0})
        case "stop" if phase.is_live:
            return STOPPED
        case "meaning" if phase.stage != "prepare":
            return STOPPED
        case "settings" if phase.stage != "prepare" and cell.phase in NOT_DONE:
            return STOPPED
        case "back":
            return Counts({1, 2, 3}, {0, *calm.faults}, {0})
        case "nothing" if (cell.happening, cell.phase) == ("dpo removed", "prepare"):
            return STOPPED  # it checks the rows of each stage
    return calm


def _is_disrupted(cell: Cell) -> bool:
    """Whether an attempt is lost by it: its pods, or the result that nobody had read yet."""
    match HAPPENINGS[cell.happening].effect:
        case "disruption" if cell.phase == SEEN_BY_NOBODY:
            return "pod" in cell.happening.split()
        case "disruption":
            return PHASES[cell.phase].is_live
        case "cleared":
            return cell.operator == "down"
    return False


NOT_DONE: Final = {
    name for name, phase in PHASES.items() if phase.is_live or name in ("backoff", "suspended")
}
