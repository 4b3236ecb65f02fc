"""The JSON schema of a manifest, for editors and for `rlhfctl schema`."""

from __future__ import annotations

from typing import Any, Final

from rlhf_api.job import GROUP, KIND, VERSION, RLHFJob

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def job_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of an RLHFJob as a user writes it, status left out."""
    schema = RLHFJob.model_json_schema(by_alias=True, mode="validation")
    schema["properties"].pop("status", None)
    schema["$defs"] = _reachable(schema, schema.pop("$defs", {}))
    head = {"$schema": DIALECT, "$id": f"https://{GROUP}/{VERSION}/{KIND.lower()}.schema.json"}
    return head | schema


def _reachable(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The definitions that the schema still refers to."""
    wanted, found = _references(schema), set[str]()
    while wanted:
        name = wanted.pop()
        found.add(name)
        wanted |= _references(definitions[name]) - found
    return {name: definitions[name] for name in definitions if name in found}


def _references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"].rsplit("/", 1)[-1]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(_references(item) for item in value.values()))
    if isinstance(value, list):
        return set().union(*(_references(item) for item in value))
    return set()
