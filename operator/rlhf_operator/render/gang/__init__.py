"""Gang schedulers, one file each, in an explicit registry."""

from __future__ import annotations

from typing import Final

from rlhf_api.scheduling import Scheduling

from rlhf_operator.render.gang.coscheduling import COSCHEDULING
from rlhf_operator.render.gang.kai import KAI
from rlhf_operator.render.gang.koordinator import KOORDINATOR
from rlhf_operator.render.gang.kueue import KUEUE
from rlhf_operator.render.gang.native import NATIVE
from rlhf_operator.render.gang.none import NONE
from rlhf_operator.render.gang.scheduler import Gang
from rlhf_operator.render.gang.volcano import VOLCANO
from rlhf_operator.render.platform import Platform

GANGS: Final[dict[str, Gang]] = {
    "none": NONE,
    "volcano": VOLCANO,
    "kai": KAI,
    "koordinator": KOORDINATOR,
    "coscheduling": COSCHEDULING,
    "kueue": KUEUE,
    "native": NATIVE,
}


def gang_name(scheduling: Scheduling, platform: Platform) -> str:
    """The scheduler that the user names; `auto` is the first of the platform's that is served.

    Never Kueue by itself: its queues admit nothing that does not name one of them.
    """
    if scheduling.gang != "auto":
        return scheduling.gang
    served = (name for name in platform.gang_order if GANGS[name].is_served(platform))
    return next(served, "none")


def gang_for(scheduling: Scheduling, platform: Platform) -> Gang:
    """The chosen scheduler."""
    return GANGS[gang_name(scheduling, platform)]
