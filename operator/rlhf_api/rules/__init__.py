"""Rules across fields: what each field alone allows, but together makes no sense.

One walk over a job asks every rule of every object; a field that could not be read is absent (see
partial.py), and a rule that reads it falls silent.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from rlhf_api.base import Contract
from rlhf_api.fields import Model
from rlhf_api.job import JobSpec
from rlhf_api.partial import is_absent
from rlhf_api.problems import Problem
from rlhf_api.rules.job import JOB_RULES
from rlhf_api.rules.pods import POD_RULES
from rlhf_api.rules.rule import Rule, Rules
from rlhf_api.rules.sources import SOURCE_RULES
from rlhf_api.rules.stage import STAGE_RULES
from rlhf_api.rules.transitions import transitions_of

ALL_RULES: Final[tuple[Rules, ...]] = (JOB_RULES, STAGE_RULES, POD_RULES, SOURCE_RULES)


@cache
def rules_of(model: Model) -> tuple[Rule, ...]:
    """The rules of a contract class and of those that it derives from."""
    tables = ((rules, kind) for rules in ALL_RULES for kind in model.__mro__)
    return tuple(rule for rules, kind in tables for rule in rules.get(kind, ()))


def broken_rules(spec: JobSpec) -> list[Problem]:
    """Everything that the rules have to say of what could be read."""
    told = (_told(rule, path, value) for rule, path, value in asked(spec))
    return [problem for problem in told if problem]


def asked(spec: JobSpec) -> Iterator[tuple[Rule, str, Contract]]:
    """Each rule with each object that it is about, and the object's path."""
    for path, value in contracts(spec, "spec"):
        for rule in rules_of(type(value)):
            yield rule, path, value


def contracts(value: object, path: str) -> Iterator[tuple[str, Contract]]:
    """Every contract object at and below a value, absent fields passed over, with its path."""
    if isinstance(value, Contract):
        yield path, value
        for name, info in type(value).model_fields.items():
            yield from contracts(value.__dict__.get(name), f"{path}.{info.alias or name}")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from contracts(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from contracts(item, f"{path}[{index}]")


def validations(model: Model) -> list[dict[str, Any]]:
    """The CEL rules of a contract class, as x-kubernetes-validations."""
    return [rule.validation() for rule in rules_of(model)] + transitions_of(model)


def _told(rule: Rule, path: str, value: Contract) -> Problem | None:
    """What a rule says of an object; nothing where it or its words need a field that is absent."""
    try:
        return None if rule.holds(value) else rule.problem(path, value)
    except AttributeError as error:
        if not is_absent(error):
            raise
        return None
