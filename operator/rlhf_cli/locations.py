"""Local paths in a manifest are relative to the manifest; a run needs them absolute."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from rlhf_api.base import Contract
from rlhf_api.data import DataSource, ModelSource
from rlhf_api.job import RLHFJob
from rlhf_api.problems import Problem
from rlhf_api.sources import named_sources, uris
from rlhf_api.stages.ppo import FunctionReward

ContractT = TypeVar("ContractT", bound=Contract)
ADDRESSES = ("source", "tokenizer", "eval_source")


def is_local(address: str) -> bool:
    """Whether an address is a path of this machine."""
    return "://" not in address


def resolved(value: ContractT, folder: Path) -> ContractT:
    """The same object with every local path absolute, as seen from a folder."""
    changes = {name: _resolved(getattr(value, name), folder) for name in type(value).model_fields}
    if isinstance(value, ModelSource | DataSource | FunctionReward):
        changes |= {
            name: absolute(address, folder)
            for name in ADDRESSES
            if (address := getattr(value, name, None)) and is_local(address)
        }
    changed = {name: new for name, new in changes.items() if new is not getattr(value, name)}
    return value.model_copy(update=changed) if changed else value


def absolute(address: str, folder: Path) -> str:
    """A local path as seen from a folder; `~` is the user's home."""
    return os.path.normpath(folder / os.path.expanduser(address))


def missing_paths(job: RLHFJob) -> Iterator[Problem]:
    """Local paths of a resolved job that are not there, or files where folders are read."""
    for ref in named_sources(job.spec):
        for address in uris(ref.value):
            if is_local(address) and not os.path.exists(address):
                yield Problem(f"spec.{ref.field}", f"{address} does not exist", _hint(ref.value))
        source = ref.value.source
        if not isinstance(ref.value, DataSource) and is_local(source) and os.path.isfile(source):
            yield Problem(f"spec.{ref.field}", f"{source} is a file", _hint(ref.value))


def _hint(value: ModelSource | DataSource | FunctionReward) -> str:
    kind = "a file or folder" if isinstance(value, DataSource) else "a folder"
    hub = "" if isinstance(value, FunctionReward) else ", or hf://OWNER/NAME for one on the hub"
    return f"{kind}, relative to the manifest{hub}"


def _resolved(value: Any, folder: Path) -> Any:
    if isinstance(value, Contract):
        return resolved(value, folder)
    if isinstance(value, dict):
        items = {key: _resolved(item, folder) for key, item in value.items()}
        return items if any(items[key] is not value[key] for key in value) else value
    return value
