"""Conditions: what kstatus, Argo CD and `kubectl wait` read, and why a job waits.

state      Ready  Reconciling  Stalled  Suspended   kstatus      Argo CD
running    False  True         False    False       InProgress   Progressing
done       True   False        False    False       Current      Healthy
failed     False  False        True     False       Failed       Degraded
suspended  False  False        False    True        InProgress   Suspended

Beside these, Scheduled tells whether pods have a place, and ApprovalNeeded whether a person has to
look. No message holds a clock: how long something holds is told by lastTransitionTime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

from rlhf_api.status import Condition

from rlhf_operator.decisions import Decision
from rlhf_operator.messages import redacted
from rlhf_operator.pausing import Pause
from rlhf_operator.waiting import UNPLACED

KINDS: Final = ("Ready", "Reconciling", "Stalled", "Suspended")


class State(NamedTuple):
    """Which of the four holds, and why."""

    true: str
    reason: str
    message: str


class Said(NamedTuple):
    """One condition, before it is known when it turned."""

    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str


def job_state(decisions: Mapping[str, Decision], *, pause: Pause | None, is_stuck: bool) -> State:
    """Which of the four holds for a job whose stages stand so."""
    if all(decision.verdict == "Succeeded" for decision in decisions.values()):
        return State("Ready", "Succeeded", "Every stage has succeeded.")
    if pause:
        return State("Suspended", *pause)
    return _cause(decisions) if is_stuck else _doing(decisions)


def conditions(
    before: Sequence[Condition],
    state: State,
    decisions: Mapping[str, Decision],
    *,
    generation: int,
    now: str,
) -> list[Condition]:
    """All conditions; a transition time moves only where the status does."""
    found = with_conditions(before, state, generation=generation, now=now)
    for kind, said in (
        ("Scheduled", scheduled(decisions)),
        ("ApprovalNeeded", approval(decisions)),
    ):
        found = _put(found, kind, said, generation, now)
    return found


def with_conditions(
    before: Sequence[Condition], state: State, *, generation: int, now: str
) -> list[Condition]:
    """The four conditions of a state, and all others as they were."""
    found = list(before)
    for kind in KINDS:
        said = Said("True" if kind == state.true else "False", state.reason, state.message)
        found = _put(found, kind, said, generation, now)
    own = {condition.type: condition for condition in found}
    return [own[kind] for kind in KINDS] + [item for item in found if item.type not in KINDS]


def _put(
    before: Sequence[Condition], kind: str, said: Said, generation: int, now: str
) -> list[Condition]:
    """The conditions with this one in its place, or at the end."""
    old = next((item for item in before if item.type == kind), None)
    moved = old is None or old.status != said.status
    new = Condition(
        type=kind,
        status=said.status,
        reason=said.reason,
        message=said.message,
        last_transition_time=now if old is None or moved else old.last_transition_time,
        observed_generation=generation,
    )
    if old is None:
        return [*before, new]
    return [new if item is old else item for item in before]


def scheduled(decisions: Mapping[str, Decision]) -> Said:
    """Whether the pods of what is under way have a place, else what they wait for."""
    waits = {n: d for n, d in decisions.items() if d.verdict == "Pending" and d.reason in UNPLACED}
    if waits:
        first = next(iter(waits.values()))
        text = " ".join(f"{name}: {decision.message}" for name, decision in waits.items())
        return Said("False", first.reason, redacted(text))
    placed = [n for n, d in decisions.items() if d.verdict in ("Pending", "Running")]
    if placed:
        return Said("True", "Scheduled", f"Every pod of {' and '.join(placed)} has its place.")
    return Said("Unknown", "NoPods", "No stage has pods.")


def approval(decisions: Mapping[str, Decision]) -> Said:
    """Whether a stage waits for a person, with the command that approves."""
    waits = {n: d.message for n, d in decisions.items() if d.reason == "AwaitingApproval"}
    if not waits:
        return Said("False", "NotNeeded", "No stage waits for a person.")
    text = " ".join(dict.fromkeys(waits.values()))
    return Said("True", "AwaitingApproval", redacted(text))


def _cause(decisions: Mapping[str, Decision]) -> State:
    """The stage that failed first in the pipeline; those behind it only wait for it."""
    failed = [(n, d) for n, d in decisions.items() if d.verdict == "Failed"]
    blocked = [(n, d) for n, d in decisions.items() if d.verdict == "Blocked"]
    name, decision = (failed or blocked)[0]
    return State("Stalled", decision.reason, redacted(f"{name}: {decision.message}"))


def _doing(decisions: Mapping[str, Decision]) -> State:
    """What goes on, or what is waited for; a branch that failed is named beside it."""
    order = ("Running", "Pending", "Create", "Begin", "Stop", "Waiting")
    going = sorted(
        ((name, d) for name, d in decisions.items() if d.verdict in order),
        key=lambda item: order.index(item[1].verdict),
    )
    name, decision = going[0]
    failed = [f"{n} failed: {d.message}" for n, d in decisions.items() if d.verdict == "Failed"]
    names = ", ".join(n for n, d in going if d.verdict == decision.verdict) or name
    text = f"{names}: {decision.message or decision.reason}"
    return State("Reconciling", decision.reason, redacted(". ".join([text, *failed])))
