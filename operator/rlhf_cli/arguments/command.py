"""What each group of commands adds its own to."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, Final, NoReturn, TypeAlias

from rlhf_cli.failures import DONE, USAGE
from rlhf_cli.program import program, release

ELSEWHERE: Final = {
    **dict.fromkeys(("apply", "create", "replace"), "submit"),
    "wait": "watch",
    "ls": "list",
    "rm": "delete",
}
"""Verbs of kubectl and of shells, and what does here what they do."""
FLAGS_ELSEWHERE: Final = {"submit --dir": "run FILE --dir DIR"}
"""Flags of other commands, and what here does what they are meant to."""
CLOSE: Final = 0.7
"""Likeness of two words, of 1, from which one may have been meant by the other."""


class Parser(argparse.ArgumentParser):
    """argparse, with the exit code that means bad usage everywhere else in this project."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and how to learn more."""
        self.exit(USAGE, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")

    _is_within = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """A command takes flags between its words, as kubectl does, which argparse alone does not.

        It refuses what it does not know itself: its own help tells what it does know.
        """
        if self._is_within:  # what argparse calls for its part, in some versions of Python
            return super().parse_known_args(args, namespace)
        self._is_within = True
        try:
            parse = self.parse_known_intermixed_args
            if self._subparsers:
                parse = super().parse_known_args
            found, unknown = parse(args, namespace)
        finally:
            self._is_within = False
        for word in unknown:
            if word.startswith("-"):
                flags = [flag for action in self._actions for flag in action.option_strings]
                flag = word.partition("=")[0]
                if other := FLAGS_ELSEWHERE.get(f"{self.prog.split()[-1]} {flag}"):
                    self.error(f"there is no flag {word}; did you mean {program()} {other}?")
                self.error(f"there is no flag {word}{did_you_mean(flag, flags)}")
            self.error(f"{word} is one word too many")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            hint = did_you_mean(ELSEWHERE.get(value, value), list(action.choices))
            self.error(f"there is no command {value}{hint}")
        super()._check_value(action, value)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The end of a sentence about a word that is none of those that are known."""
    close = difflib.get_close_matches(word, known, 1, CLOSE)
    return f"; did you mean {close[0]}?" if close else ""


class Version(argparse.Action):
    """Print the installed version; it is looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print and leave."""
        print(program(), release())
        parser.exit(DONE)


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
