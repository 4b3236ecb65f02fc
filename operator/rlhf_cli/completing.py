"""What may come next on a command line, for `rlhfctl __complete WORDS…`; the last word is begun.

A line is a word, a tab, and what it means. `:files` alone: a name of a file. Never fails.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from rlhf_cli.arguments.parser import behind_the_command, build_parser, commands_of
from rlhf_cli.arguments.shared import ON_CLUSTER

HIDDEN: Final = "__complete"
FILES: Final = ":files"
OF_FILES: Final = 0
OF_NOTHING_ELSE: Final = 4
"""Cobra's directives: what a shell may offer beside the candidates."""
OF_JOBS: Final = ("job", "jobs")
FILE_FLAGS: Final = ("FILE", "DIR", "FOLDER")
PATIENCE: Final = 2.0
"""Seconds that names on a cluster are waited for: a shell hangs meanwhile."""


def complete(words: Sequence[str]) -> int:
    """Prints the candidates."""
    for line in candidates(words or [""]):
        print(line)
    return 0


def complete_for_kubectl() -> int:
    """kubectl asks `kubectl_complete-rlhf WORDS…`, and reads as from a completion made by Cobra."""
    found = candidates(sys.argv[1:] or [""])
    is_file = found == [FILES]
    print("\n".join([*([] if is_file else found), f":{OF_FILES if is_file else OF_NOTHING_ELSE}"]))
    return 0


def candidates(words: Sequence[str]) -> list[str]:
    """Those that begin with the last word."""
    *before, begun = words
    commanded = behind_the_command(before)
    if before and not commanded and before[-1] in ON_CLUSTER:
        return [FILES] if before[-1] == "--kubeconfig" else []
    found = _next(commanded, begun)
    return [line for line in found if line == FILES or line.startswith(begun)]


def _next(before: Sequence[str], begun: str) -> list[str]:
    commands = commands_of(build_parser())
    if not before:
        return [f"{name}\t{text}" for name, (_, text) in commands.items()]
    if before[0] not in commands:
        return []
    parser = commands[before[0]][0]
    flags = {flag: action for action in parser._actions for flag in action.option_strings}
    if len(before) > 1 and (action := flags.get(before[-1])) and action.nargs != 0:
        return _values(action, before)
    if begun.startswith("-"):
        long = {a.option_strings[-1]: a for a in parser._actions if a.option_strings}
        return [f"{flag}\t{action.help or ''}" for flag, action in long.items()]
    return list(_positional(parser, before, flags))


def _positional(
    parser: argparse.ArgumentParser, before: Sequence[str], flags: dict[str, argparse.Action]
) -> Iterator[str]:
    """The value of the next argument without a flag."""
    places = [action for action in parser._actions if not action.option_strings]
    given = list(_plain(before[1:], flags))
    if places and places[0].dest in OF_JOBS and "--dir" in before:
        places = places[1:]
    index = min(len(given), len(places) - 1)
    if places and (index == len(given) or places[index].nargs in ("+", "*")):
        yield from _values(places[index], before)


def _plain(words: Sequence[str], flags: dict[str, argparse.Action]) -> Iterator[str]:
    """Words that are neither flags nor their values."""
    is_value = False
    for word in words:
        if is_value:
            is_value = False
        elif word.startswith("-"):
            action = flags.get(word)
            is_value = action is not None and action.nargs != 0
        else:
            yield word


def _values(action: argparse.Action, before: Sequence[str]) -> list[str]:
    if action.choices:
        return [str(choice) for choice in action.choices]
    if action.dest in OF_JOBS:
        return _jobs(before) or [FILES]
    if action.dest == "stage":
        from rlhf_operator.names import STAGES  # here, so that --help need not load it

        return list(STAGES)
    return [FILES] if str(action.metavar) in FILE_FLAGS else []


def _jobs(before: Sequence[str]) -> list[str]:
    """Names of the jobs of the namespace that the line names so far."""
    known = {"-n": "namespace", "--namespace": "namespace"}
    known |= {"--context": "context", "--kubeconfig": "kubeconfig"}
    given = dict(pairwise(before))
    place = {known[flag]: value for flag, value in given.items() if flag in known}
    # Here, so that other words need no client; outside the wait, which is for the cluster alone:
    # a busy machine takes seconds to load it.
    from rlhf_cli.targets.connection import Access, connected
    from rlhf_cli.targets.target import Scope

    async def names() -> list[str]:
        async with connected(Access(**place)) as target:
            return [item["metadata"]["name"] for item in (await target.jobs(Scope())).items]

    try:
        return asyncio.run(asyncio.wait_for(names(), PATIENCE))
    except Exception:  # a shell has no use for an error while somebody types
        return []
