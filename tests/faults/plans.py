"""Which faults at which calls are tried."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from faults.audit import FAULTS, KILLS, Fault, Plan, is_certain

SEED: Final = "2026-01"
KILLS_IN_SAMPLE: Final = 10


def every(calls: Iterable[str], faults: Sequence[Fault] = FAULTS) -> list[Plan]:
    """Each fault at each call.

    But for a conflict at a delete: by UID there is none, unless another object has the name by now.
    """
    plans = (Plan(call, fault) for call in dict.fromkeys(calls) for fault in faults)
    return [p for p in plans if not (p.fault == "409" and p.call.startswith("DELETE"))]


def sample(calls: Sequence[str]) -> list[Plan]:
    """Kills at some of the calls that every pipeline makes, and each other fault at one."""
    certain = [call for call in calls if is_certain(call)]
    kills = sorted(every(certain, KILLS), key=_lot)[:KILLS_IN_SAMPLE]
    others = [min(every(certain, [fault]), key=_lot) for fault in FAULTS if fault not in KILLS]
    return kills + others


def _lot(plan: Plan) -> str:
    return hashlib.sha256(f"{SEED} {plan}".encode()).hexdigest()
