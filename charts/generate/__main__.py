"""Writes what is made from others in the chart: `python charts/generate`.

With `--check` nothing is written, and the exit code is 1 where a file is not as it should be.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import yaml
from account import account_text
from readme import with_table
from schema import schema_text
from values import UndocumentedValue, read_values

REPOSITORY: Final = Path(__file__).parents[2]
CHART: Final = REPOSITORY / "charts" / "rlhf-operator"
COPIES: Final = {
    "crds/rlhf.dev_rlhfjobs.yaml": "files/rlhf.dev_rlhfjobs.yaml",
    "dashboards/rlhf.json": "files/rlhf.json",
}
"""A chart can only read what is inside of it."""


def generated() -> dict[Path, str]:
    """Each file that is made, and what is to be in it."""
    values = read_values((CHART / "values.yaml").read_text(encoding="utf-8"))
    rules = yaml.safe_load((CHART / "files" / "rbac.yaml").read_text(encoding="utf-8"))
    readme = CHART / "README.md"
    copies = {
        CHART / target: (REPOSITORY / source).read_text(encoding="utf-8")
        for source, target in COPIES.items()
    }
    return {
        CHART / "values.schema.json": schema_text(values),
        readme: with_table(readme.read_text(encoding="utf-8"), values),
        REPOSITORY / "deploy" / "rbac.yaml": account_text(rules),
        **copies,
    }


def main(words: list[str]) -> int:
    """The exit code."""
    try:
        made = generated()
    except (UndocumentedValue, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    stale = [path for path, text in made.items() if not _has(path, text)]
    if "--check" in words:
        for path in stale:
            print(f"{path.relative_to(REPOSITORY)} is out of date: make generate", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(made[path], encoding="utf-8")
    return 0


def _has(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
