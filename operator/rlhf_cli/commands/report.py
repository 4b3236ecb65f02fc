"""rlhfctl report: write report.html of a run anew, finished or not."""

from __future__ import annotations

import argparse

from rlhf_cli.failures import DONE
from rlhf_cli.report.write import write_report
from rlhf_cli.run_folder import RunFolder


def execute(args: argparse.Namespace) -> int:
    """Write the report and say where it is."""
    print(write_report(RunFolder(args.dir)))
    return DONE
