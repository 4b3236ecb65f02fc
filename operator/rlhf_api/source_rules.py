"""Rules for the addresses of models, data and code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from rlhf_api.base import Contract
from rlhf_api.data import DataSource, ModelSource
from rlhf_api.fields import shown, suggestion
from rlhf_api.problems import Problem
from rlhf_api.sources import SourceRef
from rlhf_api.stages.ppo import FunctionReward

AnySource = ModelSource | DataSource | FunctionReward
SourceRule = Callable[[str, AnySource], Iterator[Problem]]

SHAPES: Final[dict[str, tuple[str, str]]] = {
    "hf": (r"[\w.-]+(/[\w.-]+)?", "hf://OWNER/NAME"),
    "s3": (r"[\w.-]+/.+", "s3://BUCKET/KEY"),
    "gs": (r"[\w.-]+/.+", "gs://BUCKET/KEY"),
    "pvc": (r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?", "pvc://CLAIM/PATH"),
    "oci": (r"\S+", "oci://IMAGE"),
}
"""Address after scheme://, and how to say it."""


def sources_in(value: object, path: str) -> Iterator[SourceRef]:
    """All sources below a contract object, absent fields passed over."""
    if isinstance(value, AnySource):
        yield SourceRef(path, value)
    elif isinstance(value, Contract):
        for name, info in type(value).model_fields.items():
            yield from sources_in(value.__dict__.get(name), f"{path}.{info.alias or name}")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from sources_in(item, f"{path}.{key}")


def addresses_have_shape(path: str, value: AnySource) -> Iterator[Problem]:
    """A scheme that is known, with what it needs behind it."""
    for field, address in _addresses(value):
        scheme, found, rest = address.partition("://")
        if not found:
            continue
        if scheme not in SHAPES:
            guess = suggestion(scheme, list(SHAPES))
            hint = f"did you mean {guess}://? " if guess else ""
            known = ", ".join(f"{name}://" for name in SHAPES)
            yield Problem(
                f"{path}.{field}", f"{scheme}:// is not known", f"{hint}{known} or a local path"
            )
        elif not re.fullmatch(SHAPES[scheme][0], rest):
            yield Problem(
                f"{path}.{field}", f"{shown(address)} is not a {scheme} address", SHAPES[scheme][1]
            )


def addresses_stay_inside(path: str, value: AnySource) -> Iterator[Problem]:
    """A volume's or bucket's path does not climb out of it. Local paths are the user's own."""
    for field, address in _addresses(value):
        if "://" in address and ".." in address.split("://", 1)[1].split("/"):
            yield Problem(
                f"{path}.{field}", f"{shown(address)} leaves its volume", "a path without '..'"
            )


def hub_fields_have_a_hub(path: str, value: AnySource) -> Iterator[Problem]:
    """Revisions and splits are things of a hub; elsewhere they would be ignored in silence."""
    if value.source.startswith("hf://"):
        return
    if getattr(value, "revision", None):
        yield Problem(
            f"{path}.revision",
            "is set, and the source is not on a hub",
            "leave it out, or hf://OWNER/NAME",
        )
    if isinstance(value, DataSource) and value.split != "train":
        yield Problem(
            f"{path}.split",
            "is set, and the source is not on a hub",
            "leave it out, or hf://OWNER/NAME",
        )


SOURCE_RULES: Final[tuple[SourceRule, ...]] = (
    addresses_have_shape,
    addresses_stay_inside,
    hub_fields_have_a_hub,
)


def _addresses(value: AnySource) -> Iterator[tuple[str, str]]:
    """The fields of a source that hold addresses."""
    for name, alias in (
        ("source", "source"),
        ("tokenizer", "tokenizer"),
        ("eval_source", "evalSource"),
    ):
        address = value.__dict__.get(name)
        if address:
            yield alias, address
