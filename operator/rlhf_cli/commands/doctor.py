"""rlhfctl doctor: is this cluster ready, and if not, what is to be done."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from rich.text import Text
from rlhf_operator.api import ApiError

from rlhf_cli.doctor.cluster_checks import devices, gang_schedulers, server, storage
from rlhf_cli.doctor.findings import MARKS, Finding, Look, not_seen
from rlhf_cli.doctor.operator_checks import lease, resource, unseen_jobs
from rlhf_cli.doctor.permission_checks import permissions
from rlhf_cli.failures import DONE, FAILED
from rlhf_cli.progress.summary import console_for
from rlhf_cli.targets.connection import Access, connected
from rlhf_cli.targets.refusals import refusal

CHECKS: Final[dict[str, Callable[[Look], Awaitable[list[Finding]]]]] = {
    "Kubernetes": server,
    "Resource": resource,
    "Operator": lease,
    "Namespace": unseen_jobs,
    "Permissions": permissions,
    "Gang scheduling": gang_schedulers,
    "Devices": devices,
    "Storage": storage,
}
WIDTH: Final = max(map(len, CHECKS))


def execute(args: argparse.Namespace) -> int:
    """Check all; 0 where nothing is an error."""
    findings = asyncio.run(_examined(args))
    if args.output == "json":
        print(json.dumps([item._asdict() for item in findings], ensure_ascii=False, indent=2))
    else:
        _print(findings)
    return FAILED if any(item.level == "error" for item in findings) else DONE


async def _examined(args: argparse.Namespace) -> list[Finding]:
    findings: list[Finding] = []
    async with connected(Access.of(args)) as target:
        look = Look(target.api, target.namespace)
        for subject, check in CHECKS.items():
            try:
                findings += await check(look)
            except ApiError as error:
                if error.code in (0, 401):  # nothing else will be answered either
                    raise refusal(error, "get", subject, target.namespace) from None
                findings.append(not_seen(subject, error))
    return findings


def _print(findings: Sequence[Finding]) -> None:
    console = console_for(sys.stdout)
    for item in findings:
        mark, style = MARKS[item.level]
        line = Text.assemble((f"{mark} {item.subject:<{WIDTH}}  ", style), item.found)
        console.print(line, soft_wrap=True)
        if item.advice:
            console.print(Text(f"  {'':<{WIDTH}}  → {item.advice}"), soft_wrap=True)
