"""JSON schemas as Kubernetes wants them: structural, with server-side defaults and CEL rules.

A structural schema has no references and no unions but int-or-string. Null stands for "left out",
except where null overrides a default: only there the schema says `nullable`.
https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from rlhf_api.base import INT64_MAX
from rlhf_api.fields import Model, contracts_in

Schema = dict[str, Any]
Validations = Callable[[Model], list[Schema]]
"""The CEL rules of a model, as x-kubernetes-validations."""

KEPT: Final[tuple[str, ...]] = (
    "description", "type", "format", "pattern", "minLength", "maxLength", "minimum", "maximum",
    "minItems", "maxItems", "maxProperties", "enum",
)  # fmt: skip
"""Keywords that mean the same in both kinds of schema."""

JSON_TYPES: Final = {str: "string", int: "integer", float: "number", bool: "boolean"}


def structural_schema(model: Model, validations: Validations) -> Schema:
    """The structural schema of a contract, with all that it leads to written out in place."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    models = {kind.__name__: kind for kind in contracts_in(model)}
    return _Writer(schema.get("$defs", {}), models, validations).written(
        schema | {"title": model.__name__}
    )


class _Writer:
    def __init__(
        self, definitions: dict[str, Schema], models: dict[str, Model], validations: Validations
    ) -> None:
        self.definitions = definitions
        self.models = models
        self.validations = validations

    def written(self, schema: Schema) -> Schema:
        """One schema and all below it."""
        schema = self._resolved(schema)
        result: Schema = {key: schema[key] for key in KEPT if key in schema}
        result |= {key: schema[key] for key in schema if key.startswith("x-kubernetes-")}
        if "const" in schema:
            result["enum"] = [schema["const"]]
        if "enum" in result:
            result.setdefault("type", JSON_TYPES[type(result["enum"][0])])
        if result.get("maximum") == INT64_MAX:  # the type says it; as a float it would overflow
            del result["maximum"]
        result |= _exclusive_bounds(schema)
        result |= self._default(schema)
        result |= self._children(schema)
        if rules := self._rules(schema):
            result["x-kubernetes-validations"] = rules
        return result

    def _resolved(self, schema: Schema) -> Schema:
        """The schema without references and without null as an alternative."""
        while "$ref" in schema or "anyOf" in schema:
            outer = {key: value for key, value in schema.items() if key not in ("$ref", "anyOf")}
            if "$ref" in schema:
                name = schema["$ref"].rsplit("/", 1)[-1]
                schema = self.definitions[name] | outer | {"title": name}
                continue
            given = [item for item in schema["anyOf"] if item.get("type") != "null"]
            if len(given) < len(schema["anyOf"]) and outer.get("default") is not None:
                outer["nullable"] = True
            schema = (given[0] if len(given) == 1 else _int_or_string(given)) | outer
        return schema

    def _default(self, schema: Schema) -> Schema:
        nullable = {"nullable": True} if schema.get("nullable") else {}
        given = schema.get("default")
        return nullable | ({} if given is None else {"default": given})

    def _children(self, schema: Schema) -> Schema:
        result: Schema = {}
        required = schema.get("required", [])
        if properties := schema.get("properties"):
            model = self.models.get(schema.get("title", ""))
            filled = model is None or model.writes_empty
            result["properties"] = {
                name: self._property(item, name in required, filled)
                for name, item in properties.items()
            }
        if required:
            result["required"] = required
        if isinstance(entries := schema.get("additionalProperties"), dict):
            result["additionalProperties"] = self.written(entries)
        if "items" in schema:
            result["items"] = self.written(schema["items"])
        return result

    def _property(self, schema: Schema, required: bool, filled: bool) -> Schema:
        """A field. What is neither required nor has a default starts empty (default_factory)."""
        result = self.written(schema)
        if filled and not required and "default" not in schema:
            result["default"] = [] if result["type"] == "array" else _defaults(result)
        return result

    def _rules(self, schema: Schema) -> list[Schema]:
        model = self.models.get(schema.get("title", "")) if "properties" in schema else None
        return self.validations(model) if model else []


def _defaults(schema: Schema) -> Schema:
    """An object of which nothing is given, in full: the API server tries rules on it as it is."""
    fields = schema.get("properties", {}).items()
    return {name: field["default"] for name, field in fields if "default" in field}


def _exclusive_bounds(schema: Schema) -> Schema:
    """OpenAPI 3.0 says whether a bound is excluded beside the bound itself.

    The API server cuts a bound to a whole number before it compares a whole number with it.
    """
    for flag in ("minimum", "exclusiveMaximum"):
        if schema.get(flag, 0) % 1:
            raise ValueError(f"{flag} {schema[flag]}: the API server would compare it cut to whole")
    result: Schema = {}
    for name, flag in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if flag in schema:
            result |= {name: schema[flag], flag: True}
    return result


def _int_or_string(alternatives: list[Schema]) -> Schema:
    """The one union that a structural schema knows."""
    kinds = [item.get("type") for item in alternatives]
    if sorted(map(str, kinds)) != ["integer", "string"]:
        raise TypeError(f"a custom resource has no field of the types {kinds}")
    bounds = {key: value for item in alternatives for key, value in item.items() if key != "type"}
    return bounds | {"x-kubernetes-int-or-string": True}
