"""Versions of what computes a run, for its report."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from rlhf_cli.program import PACKAGE

PACKAGES: Final = (
    PACKAGE,
    "torch",
    "transformers",
    "deepspeed",
    "peft",
    "datasets",
    "accelerate",
    "numpy",
    "tokenizers",
    "safetensors",
)


def installed_versions() -> dict[str, str]:
    """Python's and each package's version; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def record_versions(file: Path) -> None:
    """Write the versions as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(installed_versions(), indent=2) + "\n", "utf-8")
