"""Gang schedulers, one file each, in an explicit registry."""

from __future__ import annotations

from typing import Final, NamedTuple

from rlhf_api.scheduling import WITH_QUEUES, Scheduling

from rlhf_operator.render.gang.coscheduling import COSCHEDULING
from rlhf_operator.render.gang.kai import KAI
from rlhf_operator.render.gang.koordinator import KOORDINATOR
from rlhf_operator.render.gang.kueue import KUEUE
from rlhf_operator.render.gang.native import NATIVE
from rlhf_operator.render.gang.none import NONE
from rlhf_operator.render.gang.scheduler import Gang, PodSet
from rlhf_operator.render.gang.volcano import VOLCANO
from rlhf_operator.render.platform import Platform

__all__ = [
    "GANGS",
    "Gang",
    "GangChoice",
    "PodSet",
    "gang_choice",
    "gang_for",
    "has_queue",
    "made_kinds",
]

GANGS: Final[dict[str, Gang]] = {
    "none": NONE,
    "volcano": VOLCANO,
    "kai": KAI,
    "koordinator": KOORDINATOR,
    "coscheduling": COSCHEDULING,
    "kueue": KUEUE,
    "native": NATIVE,
}


class GangChoice(NamedTuple):
    """The gang scheduler of a job, and why it is this one, in a sentence for people."""

    name: str
    why: str


def gang_choice(scheduling: Scheduling, platform: Platform) -> GangChoice:
    """The scheduler that the user names; `auto` is the first of the platform's that can be used."""
    if scheduling.gang != "auto":
        return GangChoice(scheduling.gang, "spec.scheduling.gang names it.")
    queue = scheduling.queue or platform.defaults.queue
    passed: list[str] = []
    for name in platform.gang_order:
        if name == "none":
            break
        gang = GANGS[name]
        kinds = gang.kinds(platform)
        if kinds and (queue or not gang.needs_queue):
            why = f"The cluster serves {kinds[0]}{_after(passed)}."
            return GangChoice(name, why + _of_queue(scheduling, name))
        passed.append(f"{name} has no queue here" if kinds else f"{name} is not served")
    why = f"No gang scheduler can be used{_after(passed)}."
    return GangChoice("none", why + _of_queue(scheduling, "none"))


def made_kinds(name: str, platform: Platform) -> list[str]:
    """The kinds of objects that we may make for a gang scheduler; the first one is the newest."""
    gang = GANGS.get(name)
    return [] if gang is None or gang.makes_its_own else gang.kinds(platform)


def has_queue(name: str | None) -> bool:
    """Whether a Job that was made for this gang scheduler may be suspended by it."""
    return name in GANGS and GANGS[name].suspends


def _of_queue(scheduling: Scheduling, name: str) -> str:
    """Who names a queue and gets a scheduler without any is told so."""
    is_read = scheduling.queue is None or name in WITH_QUEUES
    return "" if is_read else " It has no queues: scheduling.queue is not read."


def _after(passed: list[str]) -> str:
    return f"; {', '.join(passed)}" if passed else ""


def gang_for(scheduling: Scheduling, platform: Platform) -> Gang:
    """The chosen scheduler."""
    return GANGS[gang_choice(scheduling, platform).name]
