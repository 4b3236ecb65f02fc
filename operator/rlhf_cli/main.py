"""rlhfctl's main function. Commands are imported when they are called, so that --help is quick."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from rlhf_cli.arguments.parser import behind_the_command, build_parser
from rlhf_cli.completing import HIDDEN, complete
from rlhf_cli.failures import (
    DONE,
    INTERRUPTED,
    IO_ERROR,
    MISTAKE,
    TERMINATED,
    Failure,
    Terminated,
)
from rlhf_cli.pipes import nobody_reads
from rlhf_cli.program import program

TRACEBACK: Final = "RLHF_TRACEBACK"
"""Variable by which a mistake of ours is told in full."""
MOST_SAID: Final = 500
"""Characters of it, where it is told in a line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == [HIDDEN]:
        return complete(words[1:])
    args = build_parser().parse_args(behind_the_command(words))
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a manifest may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        command = importlib.import_module(f"rlhf_cli.commands.{args.command}")
        code = _on_each(command.execute, args)
        sys.stdout.flush()
        return code
    except Failure as failure:
        return _told(failure)
    except BrokenPipeError:  # the reader of our output went away: `rlhfctl schema | head`
        nobody_reads(sys.stdout)
        nobody_reads(sys.stderr)
        return DONE
    except KeyboardInterrupt as interrupt:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED
    except OSError as error:
        print(
            f"{program()}: {error.filename or 'input or output'}: {error.strerror or error}",
            file=sys.stderr,
        )
        return IO_ERROR
    except Exception as mistake:
        return _own_mistake(mistake)


def _on_each(execute: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """A command of several jobs does what it can; the exit code is the first that is not 0."""
    if not hasattr(args, "jobs"):
        return execute(args)
    if len(args.jobs) < 2:
        return execute(_of_job(args, *args.jobs))
    codes = []
    for job in args.jobs:
        try:
            codes.append(execute(_of_job(args, job)))
        except Failure as failure:
            codes.append(_told(failure))
    return next(filter(None, codes), DONE)


def _of_job(args: argparse.Namespace, job: str | None = None) -> argparse.Namespace:
    return argparse.Namespace(**vars(args) | {"job": job})


def _told(failure: Failure) -> int:
    print(f"{program()}: {failure}", file=sys.stderr)
    return failure.exit_code


def _own_mistake(mistake: Exception) -> int:
    """What no command has foreseen: a line for the user, all of it for who is to mend it."""
    if os.environ.get(TRACEBACK):
        import traceback

        traceback.print_exception(mistake)
    else:
        said = " ".join(f"{type(mistake).__name__}: {mistake}".split())
        print(
            f"{program()}: this is a mistake of {program()} itself: {said[:MOST_SAID]}",
            f"report it, with what the same command prints with {TRACEBACK}=1 before it",
            sep="\n",
            file=sys.stderr,
        )
    return MISTAKE


def _open_what_is_closed() -> None:
    """A caller's `>&-` leaves Python without the stream; what would be written there is dropped."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  (to the end of all)


def _terminate(signum: int, frame: FrameType | None) -> None:
    """Once: who asks again, as with suspend in two terminals, does not want less to be saved. But
    what is raised in a destructor is lost, and is heard when it is asked for again."""
    handled = sys.exception()
    while handled and not isinstance(handled, Terminated):
        handled = handled.__context__
    if not handled:
        raise Terminated
