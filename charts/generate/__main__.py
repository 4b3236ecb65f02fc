"""Writes what is made from others in the chart, and kustomize/: `python charts/generate`.

Helm is taken from the PATH, or from where HELM says. With `--check` nothing is written, and the
exit code is 1 where a file is not as it should be.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import yaml
from account import NAME, NAMESPACE, account_text
from helm import NoHelm, render
from readme import with_table
from schema import schema_text
from values import UndocumentedValue, read_values

import kustomize

REPOSITORY: Final = Path(__file__).parents[2]
CHART: Final = REPOSITORY / "charts" / "rlhf-operator"
COPIES: Final = {
    "crds/rlhf.dev_rlhfjobs.yaml": "files/rlhf.dev_rlhfjobs.yaml",
    "dashboards/rlhf.json": "files/rlhf.json",
}
"""A chart can only read what is inside of it."""


def of_the_chart() -> dict[Path, str]:
    """What is to be in each file that is made from the chart's values and rules."""
    values = read_values((CHART / "values.yaml").read_text(encoding="utf-8"))
    readme = CHART / "README.md"
    copies = {
        CHART / target: (REPOSITORY / source).read_text(encoding="utf-8")
        for source, target in COPIES.items()
    }
    return {
        CHART / "values.schema.json": schema_text(values),
        readme: with_table(readme.read_text(encoding="utf-8"), values),
        REPOSITORY / "deploy" / "rbac.yaml": account_text(_rules()),
        **copies,
    }


def of_kustomize() -> dict[Path, str]:
    """What is to be in each file that is made from what Helm renders of the chart."""
    rendered = render(CHART, NAME, NAMESPACE, kustomize.VALUES)
    made = kustomize.files(rendered, _rules()["gangs"])
    return {REPOSITORY / "kustomize" / path: text for path, text in made.items()}


def main(words: list[str]) -> int:
    """The exit code."""
    is_check = "--check" in words
    try:
        # Helm renders the chart with the files of the first step.
        stale = [path for step in (of_the_chart, of_kustomize) for path in _made(step, is_check)]
    except (UndocumentedValue, NoHelm, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if is_check:
        for path in stale:
            print(f"{path.relative_to(REPOSITORY)} is out of date: make generate", file=sys.stderr)
    return 1 if is_check and stale else 0


def _made(step: Callable[[], dict[Path, str]], is_check: bool) -> list[Path]:
    """The files of a step that are not as they should be; they are written, but for a check."""
    made = step()
    stale = [path for path, text in made.items() if not _has(path, text)]
    for path in stale if not is_check else ():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made[path], encoding="utf-8")
    return stale


def _rules() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "files" / "rbac.yaml").read_text("utf-8"))
    return found


def _has(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
