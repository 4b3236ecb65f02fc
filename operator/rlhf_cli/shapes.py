"""The shapes of a job's models: their config.json, on this machine or on the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Final
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

from rlhf_api.data import ModelSource
from rlhf_api.job import RLHFJob
from rlhf_planner.architecture import Architecture, UnknownArchitecture, read_config
from rlhf_planner.memory import Models

from rlhf_cli.failures import Failure
from rlhf_cli.locations import is_local

CONFIG: Final = "config.json"
HUB: Final = "hf://"
INSTEAD: Final = "give the model's config.json with --config"
DENIED: Final = (401, 403)
PATIENCE: Final = 10.0
"""Seconds without an answer of the hub."""
MOST_BYTES: Final = 1 << 20
"""Of a config.json; none comes near."""


def shapes_of(job: RLHFJob, config: str | None) -> tuple[Models, list[str]]:
    """Those of a resolved job's models, and what was taken for granted. `config`: a file or folder
    in place of what spec.model names. Raises Failure."""
    policy = _read(Path(config)) if config else _shape(job.spec.model, "spec.model.source")
    notes, scoring = [], []
    for field, source in _reward_models(job):
        try:
            scoring.append(_shape(source, field))
        except Failure:
            said = f"{source.source} is not here"
            notes.append(f"{field}: taken to be as large as the policy: {said}")
            scoring.append(policy)
    return Models(policy, max(scoring, key=lambda shape: shape.parameters, default=policy)), notes


def _reward_models(job: RLHFJob) -> Iterator[tuple[str, ModelSource]]:
    stage = job.spec.stages.ppo
    for name, term in (stage.rewards if stage else {}).items():
        if term.model:
            yield f"spec.stages.ppo.rewards.{name}.model", term.model


def _shape(source: ModelSource, field: str) -> Architecture:
    if is_local(source.source):
        return _read(Path(source.source))
    if source.source.startswith(HUB):
        return _on_the_hub(source, field)
    raise Failure(f"{field}: {source.source} cannot be read from here; {INSTEAD}")


def _on_the_hub(source: ModelSource, field: str) -> Architecture:
    """Of its config.json there alone. HF_ENDPOINT and HF_TOKEN are read as the hub's own library
    reads them."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    name, revision = source.source.removeprefix(HUB), source.revision or "main"
    request = Request(f"{hub}/{quote(name)}/resolve/{quote(revision, safe='')}/{CONFIG}")
    if token := os.environ.get("HF_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urlopen(request, timeout=PATIENCE) as answer:
            content = answer.read(MOST_BYTES)
    except HTTPError as error:
        may = " (HF_TOKEN is not set)" if error.code in DENIED and not token else ""
        said = f"{hub} says: {error.code} {error.reason}{may}"
        raise Failure(f"{field}: {source.source}: {said}; {INSTEAD}") from None
    except (OSError, ValueError, HTTPException) as error:
        said = f"{hub}: {getattr(error, 'reason', error)}"
        raise Failure(f"{field}: {source.source}: {said}; {INSTEAD}") from None
    return _parsed(content, f"{source.source}/{CONFIG}")


def _read(path: Path) -> Architecture:
    file = path / CONFIG if path.is_dir() else path
    try:
        content = file.read_bytes()
    except OSError as error:
        raise Failure(f"cannot read {file}: {error.strerror}; {INSTEAD}") from None
    return _parsed(content, str(file))


def _parsed(content: bytes, name: str) -> Architecture:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise Failure(f"{name} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise Failure(f"{name} is no config.json: it holds no object")
    try:
        return read_config(found)
    except UnknownArchitecture as error:
        raise Failure(f"{name}: {error}") from None
