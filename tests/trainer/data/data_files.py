"""Builders for the data tests: files with given bytes, and a source that names them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf_api.data import DataSource
from rlhf_trainer.data.load import Loaded

SEED = 42
Load = Callable[..., Loaded[Any]]


def write(path: Path, content: bytes | str) -> Path:
    """A file with these bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """Rows as JSONL, text as it is."""
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def load(loader: Load, path: Path, **fields: Any) -> Loaded[Any]:
    """What a loader makes of a file, nothing held out unless asked for."""
    source = DataSource.model_validate({"source": "its/source", "eval_fraction": 0.0} | fields)
    return loader(source, {"its/source": str(path)}, SEED)


def texts(turns: Sequence[Any]) -> list[tuple[str, str]]:
    """(role, what is said and called) of turns."""
    return [(turn.role, turn.text) for turn in turns]
