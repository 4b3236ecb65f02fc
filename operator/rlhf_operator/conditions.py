"""Ready, Reconciling, Stalled, Suspended: what kstatus, Argo CD and `kubectl wait` read.

state      Ready  Reconciling  Stalled  Suspended   kstatus      Argo CD
running    False  True         False    False       InProgress   Progressing
done       True   False        False    False       Current      Healthy
failed     False  False        True     False       Failed       Degraded
suspended  False  False        False    True        InProgress   Suspended
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlhf_api.status import Condition

from rlhf_operator.messages import redacted
from rlhf_operator.policies import Decision


class State(NamedTuple):
    """Which of the four holds, and why."""

    true: str
    reason: str
    message: str


def conditions(
    before: Sequence[Condition],
    *,
    decisions: Mapping[str, Decision],
    is_done: bool,
    is_suspended: bool,
    is_stuck: bool,
    generation: int,
    now: str,
) -> list[Condition]:
    """The four conditions; a transition time moves only where the status does."""
    if is_done:
        state = State("Ready", "Succeeded", "Every stage has succeeded.")
    elif is_suspended:
        state = State("Suspended", "Suspended", "spec.suspend is true; checkpoints are kept.")
    elif is_stuck:
        state = _cause(decisions)
    else:
        state = _doing(decisions)
    return with_conditions(before, state, generation=generation, now=now)


def with_conditions(
    before: Sequence[Condition], state: State, *, generation: int, now: str
) -> list[Condition]:
    """The four conditions of a state, and those of others as they were."""
    old = {condition.type: condition for condition in before}
    own = [_condition(old.get(kind), kind, state, generation, now) for kind in KINDS]
    return own + [condition for condition in before if condition.type not in KINDS]


KINDS = ("Ready", "Reconciling", "Stalled", "Suspended")


def _condition(
    old: Condition | None, kind: str, state: State, generation: int, now: str
) -> Condition:
    status = "True" if kind == state.true else "False"
    moved = old is None or old.status != status
    return Condition(
        type=kind,
        status="True" if kind == state.true else "False",
        reason=state.reason,
        message=state.message,
        last_transition_time=now if old is None or moved else old.last_transition_time,
        observed_generation=generation,
    )


def _cause(decisions: Mapping[str, Decision]) -> State:
    """The stage that failed first in the pipeline; those behind it only wait for it."""
    failed = [(n, d) for n, d in decisions.items() if d.verdict == "Failed"]
    blocked = [(n, d) for n, d in decisions.items() if d.verdict == "Blocked"]
    name, decision = (failed or blocked)[0]
    return State("Stalled", decision.reason, redacted(f"{name}: {decision.message}"))


def _doing(decisions: Mapping[str, Decision]) -> State:
    """What goes on, or what is waited for; a branch that failed is named beside it."""
    order = ("Running", "Create", "Begin", "Stop", "Waiting")
    going = sorted(
        ((name, d) for name, d in decisions.items() if d.verdict in order),
        key=lambda item: order.index(item[1].verdict),
    )
    name, decision = going[0]
    failed = [f"{n} failed: {d.message}" for n, d in decisions.items() if d.verdict == "Failed"]
    names = ", ".join(n for n, d in going if d.verdict == decision.verdict) or name
    text = f"{names}: {decision.message or decision.reason}"
    return State("Reconciling", decision.reason, redacted(". ".join([text, *failed])))
