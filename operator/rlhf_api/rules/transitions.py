"""What stays as it is while a job lives: the place of its checkpoints.

Everything else may change. A change of meaning starts the stages concerned afresh, an operational
one restarts the attempt from its newest checkpoint (see base.Operational).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from rlhf_api.base import Contract
from rlhf_api.fields import Model
from rlhf_api.job import JobSpec
from rlhf_api.problems import Problem
from rlhf_api.rules.quantities import in_bytes
from rlhf_api.storage import Checkpoints, Claim

SIZE_GROWS: Final = (
    "!has(self.claim) || !has(oldSelf.claim) || "
    "(type(self.claim.size) == int && type(oldSelf.claim.size) == int && "
    "self.claim.size >= oldSelf.claim.size) || "
    "(type(self.claim.size) == string && type(oldSelf.claim.size) == string && "
    "quantity(self.claim.size).compareTo(quantity(oldSelf.claim.size)) >= 0)"
)
"""A number and a text are not compared: string() of a number has no bound on its cost."""


class Transition(NamedTuple):
    """What must hold of an object and the one before it; in CEL, of self and oldSelf."""

    field: str  # where it is told, below the object
    holds: Callable[[Any, Any], bool]
    cel: str
    message: str
    allowed: str

    def validation(self) -> dict[str, Any]:
        """The rule as an item of x-kubernetes-validations."""
        message = f"{self.message} ({self.allowed})"
        return {"rule": self.cel, "message": message, "fieldPath": f".{self.field}"}


def broken_transitions(old: JobSpec, new: JobSpec) -> list[Problem]:
    """What may not change and did."""
    pairs = [("spec.checkpoints", old.checkpoints, new.checkpoints)]
    return [
        Problem(f"{path}.{rule.field}", rule.message, rule.allowed)
        for path, before, after in pairs
        for rule in TRANSITIONS[type(after)]
        if not rule.holds(after, before)
    ]


def _fixed(field: str, value: Callable[[Any], object], default: object = None) -> Transition:
    """A field that stays. `default` is its value where the object that has it is left out."""
    now, before = _Cel("self", field), _Cel("oldSelf", field)
    if default is None:
        cel = f"({now.is_there}) == ({before.is_there}) && (!({now.is_there}) || {now} == {before})"
    else:
        cel = f"{now.or_else(default)} == {before.or_else(default)}"
    return Transition(
        field,
        lambda after, before: value(after) == value(before),
        cel,
        "is immutable",
        "a new RLHFJob, or the value that was there",
    )


class _Cel(str):
    """CEL for a field of self or oldSelf, which itself and whose parents may be left out."""

    is_there: str

    def __new__(cls, root: str, field: str) -> _Cel:
        """root.field, and the guards of each of its parts."""
        parts = field.split(".")
        paths = [".".join([root, *parts[: end + 1]]) for end in range(len(parts))]
        text = super().__new__(cls, paths[-1])
        text.is_there = " && ".join(f"has({path})" for path in paths)
        return text

    def or_else(self, default: object) -> str:
        """Its value, or a text where it is left out."""
        return f"({self.is_there} ? {self} : '{default}')"


def _claim(place: Checkpoints) -> Claim:
    return place.claim or Claim()


def _size_grows(after: Checkpoints, before: Checkpoints) -> bool:
    if after.claim is None or before.claim is None:
        return True
    new, old = after.claim.size, before.claim.size
    return type(new) is type(old) and in_bytes(new) >= in_bytes(old)


TRANSITIONS: Final[Mapping[Model, tuple[Transition, ...]]] = {
    Checkpoints: (
        _fixed("existingClaim", lambda place: place.existing_claim),
        _fixed("uri", lambda place: place.uri),
        _fixed("subPath", lambda place: place.sub_path),
        _fixed("claim.storageClass", lambda place: _claim(place).storage_class),
        _fixed(
            "claim.accessMode",
            lambda place: _claim(place).access_mode,
            Claim.model_fields["access_mode"].default,
        ),
        Transition(
            "claim.size",
            _size_grows,
            SIZE_GROWS,
            "is immutable but for growth",
            "at least the size that was there, with a unit if that had one",
        ),
    ),
}


def transitions_of(model: type[Contract]) -> list[dict[str, Any]]:
    """The transition rules of a contract class, as x-kubernetes-validations."""
    return [rule.validation() for rule in TRANSITIONS.get(model, ())]
