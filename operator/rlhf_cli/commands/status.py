"""rlhfctl status: how far a run is, from its status.yaml."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from rlhf_api.job import RLHFJob

from rlhf_cli.failures import DONE
from rlhf_cli.progress.summary import console_for, print_summary
from rlhf_cli.run_folder import RunFolder
from rlhf_cli.yaml_text import write_document


def execute(args: argparse.Namespace) -> int:
    """Show the status."""
    SHOW[args.output](RunFolder(args.dir).job())
    return DONE


def _text(job: RLHFJob) -> None:
    print_summary(console_for(sys.stdout), job, datetime.now(UTC))


def _json(job: RLHFJob) -> None:
    print(json.dumps(job.to_dict(), ensure_ascii=False, indent=2))


def _yaml(job: RLHFJob) -> None:
    print(write_document(job.to_dict()), end="")


SHOW: Final[dict[str, Callable[[RLHFJob], None]]] = {"text": _text, "json": _json, "yaml": _yaml}
