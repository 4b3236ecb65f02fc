"""A rule: what must hold of a contract object, said once for Python, for CEL and for people.

The validator asks `holds`; the CRD carries `cel`, which must say the same. A test tries both on
one table of manifests, and on generated ones.

All CEL is evaluated at each write of an RLHFJob, of its status too, and each look at a field costs
the API server as much as the object has fields in its schema, twice that where the field is set (a
stage has up to 50, `spec` 14). So what mostly decides a rule, and is cheap to see, comes first in
it; that a stage is absent comes last; an optional path (`self.?sft.?gate`) spares guards of `has`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from rlhf_api.base import Contract
from rlhf_api.fields import Model
from rlhf_api.problems import Problem

PLACEHOLDER: Final = re.compile(r"\{([A-Za-z.]+)\}")
RESERVED: Final = frozenset(
    {"as", "break", "const", "continue", "else", "for", "function", "if", "import", "in", "let",
     "loop", "namespace", "package", "return", "var", "void", "while"}
)  # fmt: skip
"""Words of CEL that a schema's field is called by as __word__."""


class Rule(NamedTuple):
    """What must hold of one object, and what to say where it does not.

    `{path}` in the texts stands for the value of a field that is never absent, in camelCase and
    below the object.
    """

    name: str
    field: str  # where it is told, below the object; empty: the object itself
    holds: Callable[[Any], bool]
    cel: str
    message: str
    allowed: str

    def problem(self, path: str, value: Contract) -> Problem:
        """What is told of an object at a path of which the rule does not hold."""
        place = f"{path}.{self.field}" if self.field else path
        return Problem(place, _filled(self.message, value), _filled(self.allowed, value))

    def validation(self) -> dict[str, Any]:
        """The rule as an item of x-kubernetes-validations, with the same words."""
        text = f"{self.message} ({self.allowed})"
        place = {"fieldPath": f".{self.field}"} if self.field else {}
        told = {"messageExpression": _cel_text(text)} if PLACEHOLDER.search(text) else {}
        return {"rule": self.cel, "message": PLACEHOLDER.sub(r"\1", text)} | told | place


Rules = Mapping[Model, tuple[Rule, ...]]
"""Rules by the contract class that they are about; they hold for its subclasses as well."""


def read_only_by(
    model: type[Contract], field: str, reads: Callable[[Any], bool], cel: str, words: str, who: str
) -> Rule:
    """A setting that only some of a stage's variants read keeps its default in the others, where it
    would change nothing. `words` name the variant, as in "loss {loss}"; `who` reads it.
    """
    name, info = next((n, i) for n, i in model.model_fields.items() if (i.alias or n) == field)
    return Rule(
        "settings_are_read",
        field,
        lambda stage: getattr(stage, name) == info.default or reads(stage),
        f"self.{field} == {json.dumps(info.default)} || {cel}",
        f"is set, and {words} does not read it",
        f"leave it out, or {who}",
    )


def cel_path(path: str) -> str:
    """A field's path below self, as CEL reads it."""
    names = (f"__{name}__" if name in RESERVED else name for name in path.split("."))
    return ".".join(["self", *names])


def cel_string(text: str) -> str:
    """A CEL string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _cel_text(template: str) -> str:
    """The CEL expression that fills a template. (Its `format` has a bounded cost, `+` has not.)"""
    values = ", ".join(cel_path(path) for path in PLACEHOLDER.findall(template))
    text = PLACEHOLDER.sub("%s", template.replace("%", "%%"))
    return f"{cel_string(text)}.format([{values}])"


def _filled(template: str, value: Contract) -> str:
    return PLACEHOLDER.sub(lambda found: _shown(_value_at(value, found[1])), template)


def _value_at(value: Any, path: str) -> Any:
    for part in path.split("."):
        names = {info.alias or name: name for name, info in type(value).model_fields.items()}
        value = getattr(value, names[part])
    return value


def _shown(value: object) -> str:
    """A value as CEL's string() shows it."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)
