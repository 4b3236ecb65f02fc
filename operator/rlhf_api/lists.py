"""Lists whose items have a key, as x-kubernetes-list-type `map`: none twice, merged by the key."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

DUPLICATE: Final = "duplicate_key"
"""Type of pydantic's error where two items have the same key."""


class KeyedBy(NamedTuple):
    """Annotates a list: the field by which its items differ; empty for items that are text."""

    field: str = ""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """The list's own checks, then this one."""
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The words that Kubernetes has for it."""
        keys = {"x-kubernetes-list-map-keys": [self.field]} if self.field else {}
        kind = "map" if self.field else "set"
        return handler(schema) | {"x-kubernetes-list-type": kind} | keys

    def check(self, items: list[Any]) -> list[Any]:
        """The list as it is, or pydantic's error."""
        keys = [getattr(item, self.field) if self.field else item for item in items]
        twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if twice is not None:
            raise PydanticCustomError(DUPLICATE, "names {key} twice", {"key": twice})
        return items
