"""rlhfctl's parser, made of its groups of commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

from rlhf_cli.arguments import jobs, manifests, tools
from rlhf_cli.arguments.command import Parser, Version
from rlhf_cli.arguments.shared import ON_CLUSTER
from rlhf_cli.failures import EXIT_CODES
from rlhf_cli.program import program

DESCRIPTION: Final = "RLHF from one manifest: check it, run it here or on a cluster, follow it."
EPILOG: Final = """\
JOB names an RLHFJob of the namespace; with a slash in it (runs/demo), or with --dir DIR in its
place, it is the directory of a run on this machine.

exit codes:
"""


def build_parser() -> Parser:
    """All commands and their flags."""
    parser = Parser(
        prog=program(),
        description=DESCRIPTION,
        epilog=EPILOG + exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    for group in (manifests, jobs, tools):
        group.add(commands)
    for command, text in commands_of(parser).values():
        command.description = f"{text[0].upper()}{text[1:]}."
    return parser


def behind_the_command(words: Sequence[str]) -> list[str]:
    """Flags that say which cluster, where they stand before the command, as for kubectl."""
    rest, flags = list(words), list[str]()
    while rest and rest[0].partition("=")[0] in ON_CLUSTER:
        size = 1 if "=" in rest[0] else 2
        flags += rest[:size]
        del rest[:size]
    return [rest[0], *flags, *rest[1:]] if rest else []


def commands_of(parser: argparse.ArgumentParser) -> dict[str, tuple[argparse.ArgumentParser, str]]:
    """Parser and help of each command, in their order."""
    (group,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    texts = {item.dest: item.help or "" for item in group._choices_actions}
    return {name: (command, texts.get(name, "")) for name, command in group.choices.items()}


def exit_codes() -> str:
    """The table of exit codes, as --help shows it."""
    return "".join(f"  {code:<4} {meaning}\n" for code, meaning in EXIT_CODES.items())
