"""rlhfctl validate: everything that is wrong with each file, at once."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Final

from rlhf_cli.failures import DONE, USAGE, Failure
from rlhf_cli.manifest import Refused, read_job
from rlhf_cli.program import program


def execute(args: argparse.Namespace) -> int:
    """Check each file; 0 where all are good."""
    failures = {name: _check(name, args.set) for name in args.files}
    show = SHOW[args.output]
    show(failures)
    return USAGE if any(failures.values()) else DONE


def _check(name: str, overrides: list[str]) -> Failure | None:
    try:
        read_job(name, overrides)
    except Failure as failure:
        return failure
    return None


def _show_text(failures: dict[str, Failure | None]) -> None:
    for name, failure in failures.items():
        if failure is None:
            print(f"{name} is valid")
        else:
            print(f"{program()}: {failure}", file=sys.stderr)


def _show_json(failures: dict[str, Failure | None]) -> None:
    results = [
        {"file": name, "valid": failure is None, "problems": _problems(failure)}
        for name, failure in failures.items()
    ]
    print(json.dumps(results, ensure_ascii=False, indent=2))


def _problems(failure: Failure | None) -> list[dict[str, Any]]:
    if failure is None:
        return []
    if not isinstance(failure, Refused):
        return [{"path": "", "message": str(failure), "allowed": "", "line": None, "column": None}]
    return [
        {**item.problem._asdict(), "line": line, "column": column}
        for item in failure.found
        for line, column in [item.position or (None, None)]
    ]


SHOW: Final = {"text": _show_text, "json": _show_json}
