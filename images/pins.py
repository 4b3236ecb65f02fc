"""Prints what pip would install, from its report of a dry run: one exact version a line."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(report: str) -> None:
    found = (item["metadata"] for item in json.loads(Path(report).read_text())["install"])
    pins = sorted(f"{one['name'].lower().replace('_', '-')}=={one['version']}" for one in found)
    print("# What vLLM needs beside constraints.txt, exactly. Regenerate: make constraints-vllm")
    print("\n".join(pin for pin in pins if not pin.startswith("rlhf-operator==")))


if __name__ == "__main__":
    main(sys.argv[1])
