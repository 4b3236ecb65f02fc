"""The writes of one operator over all its lives, in order and by name, and the faults at them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, get_args

Fault = Literal[
    "killed before",  # the API server never hears of the call
    "killed after",  # it has answered, and nobody hears of it
    "409",
    "429",
    "500",
    "503",
    "504 after",  # the call was carried out, and the answer says that it timed out
    "cut after",  # the call was carried out, and the connection breaks
]
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)
KILLS: Final[tuple[Fault, ...]] = ("killed before", "killed after")

STATUS: Final = "PUT status"
BEGINS: Final = "InputsReady"
"""In the name of a status write that begins an attempt."""


class Plan(NamedTuple):
    """One fault at one call. By its name: what is sent side by side comes in any order."""

    call: str
    fault: Fault

    def __str__(self) -> str:
        return f"{self.call}: {self.fault}"


@dataclass
class Call:
    """One write that an operator asked for."""

    name: str
    life: int
    fault: Fault | None = None
    code: int | None = None  # the API server's answer; None: it never heard of it

    @property
    def is_status(self) -> bool:
        """Whether it writes the RLHFJob's status."""
        return self.name.startswith(STATUS)


Strike = Callable[[str, int], Fault | None]
"""The fault at a call of this name, that is asked for the n-th time, counted from 1."""


def calm(name: str, time: int) -> Fault | None:
    """Nothing happens."""
    return None


def once(plan: Plan) -> Strike:
    """The plan's fault, the first time that its call is asked for."""
    return lambda name, time: plan.fault if (name, time) == (plan.call, 1) else None


def killed_at_every_call(name: str, time: int) -> Fault | None:
    """Asked for in one life, carried out in the next one, known of in the third."""
    return {1: KILLS[0], 2: KILLS[1]}.get(time)


def killed_twice_at(call: str) -> Strike:
    """The same, at one call alone."""
    return lambda name, time: killed_at_every_call(name, time) if name == call else None


@dataclass
class Audit:
    """What was asked for, and what came of it."""

    strike: Strike = calm
    calls: list[Call] = field(default_factory=list)
    life: int = 0
    _times: Counter[str] = field(default_factory=Counter)
    _stages: dict[str, str] = field(default_factory=dict)

    @property
    def struck(self) -> list[Call]:
        """The calls at which a fault was injected."""
        return [call for call in self.calls if call.fault]

    def take(self, method: str, path: str, body: bytes) -> Call:
        """Notes a call before it is carried out, and says which fault is to strike at it."""
        name = self._named(method, path, body)
        self._times[name] += 1
        call = Call(name, self.life, self.strike(name, self._times[name]))
        self.calls.append(call)
        return call

    def carried_out(self, call: Call, code: int, body: bytes) -> None:
        """Notes what the API server answered."""
        call.code = code
        if call.is_status and code < 300:
            self._stages = stages_in(json.loads(body))

    def _named(self, method: str, path: str, body: bytes) -> str:
        """`POST jobs/tiny-sft-1`, `PUT status: sft 1 Running`."""
        where = path.partition("/namespaces/")[2].partition("/")[2] or path
        if method == "POST":
            return f"POST {where}/{json.loads(body)['metadata']['name']}"
        if not where.endswith("/status"):
            return f"{method} {where}"
        changed = stages_in(json.loads(body)).items() - self._stages.items()
        return f"{STATUS}: {', '.join(f'{stage} {text}' for stage, text in sorted(changed))}"


def is_certain(name: str) -> bool:
    """Whether every pipeline makes it: of other status writes, two are one on a fast cluster."""
    return not name.startswith(STATUS) or BEGINS in name


def stages_in(job: dict[str, Any]) -> dict[str, str]:
    """How each stage is, in a few words."""
    status = job["status"]
    stages = {"prepare": status.get("prepare") or {}, **status.get("stages", {})}
    return {
        name: f"{of.get('attempt', 0)} {of.get('phase')} {of.get('reason') or ''}".rstrip()
        for name, of in stages.items()
    }
