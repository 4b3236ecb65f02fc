"""Prints what pip would install, from its report of a dry run, and what is not pinned already."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

HEAD = "# What vLLM needs beside constraints.txt, exactly. Regenerate: make constraints-vllm"


def main(report: str, *pinned: str) -> None:
    known = {name(line) for file in pinned for line in Path(file).read_text().splitlines()}
    found = (item["metadata"] for item in json.loads(Path(report).read_text())["install"])
    pins = sorted(f"{name(one['name'])}=={one['version']}" for one in found)
    print("\n".join([HEAD, *(pin for pin in pins if name(pin) not in known | {"rlhf-operator"})]))


def name(requirement: str) -> str:
    """As indexes compare it."""
    return re.sub("[-_.]+", "-", requirement.partition("==")[0]).lower()


if __name__ == "__main__":
    main(*sys.argv[1:])
