"""What each group of commands adds its own to."""

from __future__ import annotations

import argparse
from typing import NoReturn, TypeAlias

from rlhf_cli.failures import DONE, USAGE
from rlhf_cli.program import program, release


class Parser(argparse.ArgumentParser):
    """argparse, with the exit code that means bad usage everywhere else in this project."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and how to learn more."""
        self.exit(USAGE, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


class Version(argparse.Action):
    """Print the installed version; it is looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print and leave."""
        print(program(), release())
        parser.exit(DONE)


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
