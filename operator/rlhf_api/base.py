"""What every model of the contract has in common: strictness, camelCase, what counts as meaning."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo


class Operational:
    """Marks a field that cannot change what a stage computes: it stays out of the stage's identity.

    Nodes, retries and deadlines are operational: changing one restarts the attempt from its
    newest checkpoint. Everything unmarked is meaning: changing it starts the stage afresh.
    """


OPERATIONAL: Final = Operational()


ATOMIC: Final[dict[str, Any]] = {"x-kubernetes-map-type": "atomic"}
"""For json_schema_extra: server-side apply takes or leaves the object as a whole."""


class Contract(BaseModel):
    """Base of all models: unknown fields refused, no coercion, camelCase in YAML."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=False,
    )
    writes_empty: ClassVar[bool] = True
    """Whether a list or map that is empty is written by `to_dict`, and a default of the CRD."""

    def to_dict(self) -> dict[str, Any]:
        """The object as a user writes it: camelCase; null only where null is not the default."""
        return dict(_written(self))


def _written(value: Any) -> Any:
    """Plain JSON values. A null that overrides a default stays, or the default would come back."""
    if isinstance(value, Contract):
        left_out: tuple[Any, ...] = () if value.writes_empty else ([], {})
        own = {
            info.alias or name: _written(item)
            for name, info in type(value).model_fields.items()
            if (item := getattr(value, name)) not in left_out
            and (item is not None or not _defaults_to_none(info))
        }
        extra = value.model_extra or {}
        return own | {key: item for key, item in extra.items() if item is not None}
    if isinstance(value, dict):
        return {key: _written(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_written(item) for item in value]
    return value


def _defaults_to_none(info: FieldInfo) -> bool:
    return info.get_default(call_default_factory=True) is None


def identity(value: object) -> Any:
    """The JSON-able meaning of a contract object: all its fields but the operational ones."""
    if isinstance(value, Contract):
        fields = type(value).model_fields
        return {
            info.alias or name: identity(getattr(value, name))
            for name, info in fields.items()
            if OPERATIONAL not in info.metadata and getattr(value, name) is not None
        }
    if isinstance(value, dict):
        return {key: identity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [identity(item) for item in value]
    return value


def digest(value: object) -> str:
    """SHA-256 of canonical JSON, as ``sha256:<hex>``; equal meaning gives equal digests."""
    text = json.dumps(identity(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""A DNS-1123 label, as Kubernetes names namespaces, volumes and queues."""

SUBDOMAIN: Final = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
QUALIFIED: Final = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LABEL_KEY_PATTERN: Final = f"^({SUBDOMAIN}/)?{QUALIFIED}$"
"""What k8s.io/apimachinery (util/validation) calls DNS-1123 subdomain, and qualified name."""

ObjectName = Annotated[str, Field(pattern=f"^{SUBDOMAIN}$", min_length=1, max_length=253)]
"""A DNS-1123 subdomain, as Kubernetes names most objects: claims, Secrets, classes."""

LabelKey = Annotated[str, Field(pattern=LABEL_KEY_PATTERN, max_length=317)]
"""A label's key, with or without a domain before it."""

LABEL_VALUE_PATTERN: Final = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
LabelValue = Annotated[str, Field(pattern=LABEL_VALUE_PATTERN, max_length=63)]
"""A label's value; may be empty."""

QUANTITY_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?$"
INT64_MAX: Final = 2**63 - 1
Quantity = (
    Annotated[int, Field(ge=0, le=INT64_MAX)]
    | Annotated[str, Field(pattern=QUANTITY_PATTERN, max_length=32)]
)
"""A Kubernetes resource quantity; kept as the user wrote it, so that Git and cluster agree."""
