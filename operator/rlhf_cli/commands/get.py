"""rlhfctl get, and list: jobs as a table, JSON, YAML or names; with -w each change."""

from __future__ import annotations

import argparse
import asyncio
import sys

from rlhf_cli.failures import DONE, Failure
from rlhf_cli.output import (
    DOCUMENTS,
    column_widths,
    name_of,
    print_document,
    print_objects,
    rows,
    table,
)
from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import Listing, Scope, Target


def execute(args: argparse.Namespace) -> int:
    """Print the jobs that are asked for."""
    return asyncio.run(_get(args))


async def _get(args: argparse.Namespace) -> int:
    args.job_is_optional = True
    scope = Scope(args.selector or "", args.all_namespaces)
    async with target_of(args) as target:
        names = [args.job] if args.job else []
        if names and (scope.selector or scope.everywhere):
            raise Failure("a name and -l or -A exclude each other: leave one out")
        if args.watch:
            await _watch(target, args, scope)
            return DONE
        is_one = bool(names) or (args.command == "get" and target.is_one_job)
        found = Listing([await target.job(args.job)]) if is_one else await target.jobs(scope)
        if found.items or args.output in DOCUMENTS:
            print_objects(found.items, args.output, is_list=not is_one, namespaces=scope.everywhere)
        elif not found.unread:
            print(f"No RLHFJobs in {_where(target, scope)}.", file=sys.stderr)
    if found.unread:
        raise Failure(*(line for why in found.unread for line in why.lines))
    return DONE


def _where(target: Target, scope: Scope) -> str:
    return "any namespace" if scope.everywhere else target.place


async def _watch(target: Target, args: argparse.Namespace, scope: Scope) -> None:
    """A line for each change; columns keep the width of the widest so far."""
    wide, namespaces = args.output == "wide", scope.everywhere
    widths: list[int] = []
    is_first = True
    is_one = args.job or target.is_one_job
    changes = target.watch(args.job, scope) if is_one else target.watch_all(scope)
    async for kind, item in changes:
        if args.output in DOCUMENTS:
            print_document(item, args.output, is_first=is_first)
            is_first = False
        elif args.output == "name":
            print(name_of(item))
        elif kind != "DELETED":
            lines = rows([item], wide, namespaces)
            widths = column_widths(lines, widths)
            shown = table(lines, widths)
            print("\n".join(shown if is_first else shown[1:]))
            is_first = False
        sys.stdout.flush()
