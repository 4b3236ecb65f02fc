"""Checks of objects against structural schemas, as an API server with strict fields makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import yaml

CRDS = Path(__file__).parent / "gang_crds"


def crds() -> dict[str, dict[str, Any]]:
    """The CRDs of the gang schedulers, by ``group/version/Kind`` of what they describe."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(CRDS.glob("*.yaml")):
        crd = yaml.safe_load(path.read_text("utf-8"))
        spec = crd["spec"]
        found[f"{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['kind']}"] = crd
    return found


def problems(obj: dict[str, Any]) -> list[str]:
    """What the schema of an object's kind has against it; KeyError for a kind without one."""
    crd = crds()[f"{obj['apiVersion']}/{obj['kind']}"]
    schema = _strict(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    errors = jsonschema.Draft202012Validator(schema).iter_errors(obj)
    return [f"{error.json_path}: {error.message}" for error in errors]


def _strict(schema: Any) -> Any:
    """Unknown fields are refused; metadata is the API server's own."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: _strict(item) for name, item in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict) and "type" in schema:
        strict["additionalProperties"] = False
    return strict
