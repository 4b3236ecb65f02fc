"""What Helm renders of the chart."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


class NoHelm(Exception):
    """There is none, or it does not render the chart."""


def render(chart: Path, name: str, namespace: str, values: Mapping[str, Any]) -> list[Any]:
    """The objects of a release. Raises NoHelm."""
    program = os.environ.get("HELM") or shutil.which("helm")
    if not program:
        raise NoHelm("there is no Helm: put it on the PATH, or name it in HELM")
    words = [program, "template", name, str(chart), "--namespace", namespace, "--values", "-"]
    given = yaml.safe_dump(dict(values))
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoHelm(done.stderr.strip())
    return [item for item in yaml.safe_load_all(done.stdout) if item]
