"""Prints what pyproject.toml requires, with the extras that are named, one requirement a line."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def main(pyproject: str, *extras: str) -> None:
    project = tomllib.loads(Path(pyproject).read_text())["project"]
    optional = project["optional-dependencies"]
    if unknown := [extra for extra in extras if extra not in optional]:
        sys.exit(f"{pyproject} has no extra {', '.join(unknown)}; it has {', '.join(optional)}")
    print(
        "\n".join([*project["dependencies"], *(one for extra in extras for one in optional[extra])])
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
