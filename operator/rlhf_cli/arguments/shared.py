"""Flags that several commands have."""

from __future__ import annotations

import argparse
import re
from typing import Final

UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

ON_CLUSTER: Final = ("-n", "--namespace", "--context", "--kubeconfig")
"""Flags of `on_cluster`."""


def on_cluster(command: argparse.ArgumentParser) -> None:
    """Which cluster, as kubectl is told."""
    command.add_argument(
        "-n", "--namespace", metavar="NAME", help="namespace (default: the kubeconfig's)"
    )
    command.add_argument("--context", metavar="NAME", help="context of the kubeconfig")
    command.add_argument("--kubeconfig", metavar="FILE", help="kubeconfig to use")


def on_job(command: argparse.ArgumentParser) -> None:
    """One job: JOB on a cluster, or the run in a directory."""
    command.add_argument("job", nargs="?", metavar="JOB", help="an RLHFJob, or a run's directory")
    _or_here(command)


def on_jobs(command: argparse.ArgumentParser) -> None:
    """One job or several; main sets `job` to each in turn."""
    command.add_argument("jobs", nargs="*", metavar="JOB", help="RLHFJobs, or runs' directories")
    _or_here(command)


def _or_here(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dir", metavar="DIR", help="a run on this machine, in place of JOB")
    on_cluster(command)


def change(command: argparse.ArgumentParser) -> None:
    """-o of what changes a job."""
    command.add_argument(
        *("-o", "--output"),
        choices=("text", "name"),
        default="text",
        help="how to say it; name: the job's name alone, as kubectl does",
    )


def overrides(command: argparse.ArgumentParser) -> None:
    """--set."""
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="set a field, such as spec.stages.ppo.kl.coef=0.05; may be given again",
    )


def waiting(command: argparse.ArgumentParser, until: str) -> None:
    """--wait and how long."""
    command.add_argument("--wait", action="store_true", help=f"return when {until}")
    timeout(command)


def timeout(command: argparse.ArgumentParser) -> None:
    """How long is waited."""
    command.add_argument(
        "--timeout",
        type=seconds,
        metavar="TIME",
        help="give up waiting after so long: 90s, 15m, 24h (default: never)",
    )


def seconds(text: str) -> int:
    """90s, 15m, 1h30m, 2d, or a number of seconds."""
    if not re.fullmatch(r"\d+|(\d+[smhd])+", text):
        raise argparse.ArgumentTypeError(f"{text} is no time such as 90s, 15m or 1h30m")
    parts = re.findall(r"(\d+)([smhd]?)", text)
    return sum(int(number) * UNITS[unit] for number, unit in parts)


def lines(text: str) -> int | None:
    """A number of lines; None for -1, which is all of them, as with kubectl."""
    if not re.fullmatch(r"\d+|-1", text):
        raise argparse.ArgumentTypeError(f"{text} is no number of lines; -1: all of them")
    return None if text == "-1" else int(text)
