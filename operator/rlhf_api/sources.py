"""Which models, data sets and code folders a job names, and where in the spec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rlhf_api.base import Contract
from rlhf_api.data import DataSource, ModelSource
from rlhf_api.stages.ppo import FunctionReward


class SourceRef(NamedTuple):
    """One source of a job."""

    field: str  # its place below spec, in camelCase: stages.sft.data
    value: ModelSource | DataSource | FunctionReward


def named_sources(value: object, field: str = "") -> Iterator[SourceRef]:
    """All sources below a contract object, depth first in field order."""
    if isinstance(value, ModelSource | DataSource | FunctionReward):
        yield SourceRef(field, value)
    elif isinstance(value, Contract):
        for name, info in type(value).model_fields.items():
            if isinstance(item := getattr(value, name), (Contract, dict)):
                yield from named_sources(item, _join(field, info.alias or name))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from named_sources(item, _join(field, str(key)))


def _join(parent: str, child: str) -> str:
    return f"{parent}.{child}" if parent else child


def uris(value: ModelSource | DataSource | FunctionReward) -> tuple[str, ...]:
    """The addresses one source names: a model may add a tokenizer, a data set an evaluation set."""
    extra = getattr(value, "tokenizer", None) or getattr(value, "eval_source", None)
    return (value.source, extra) if extra else (value.source,)
