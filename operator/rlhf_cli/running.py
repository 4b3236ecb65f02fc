"""A job that is trained on this machine, in the foreground, and what is said of it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import cache
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rlhf_api.job import RLHFJob
from rlhf_operator import local

from rlhf_cli.failures import DONE, FAILED, INTERRUPTED, IO_ERROR, TERMINATED, Failure, Terminated
from rlhf_cli.object_store import bring_records
from rlhf_cli.pipes import nobody_reads
from rlhf_cli.post_mortem import explain
from rlhf_cli.program import command, program
from rlhf_cli.progress.lines import LineProgress
from rlhf_cli.progress.logs import LogFollower
from rlhf_cli.progress.summary import console_for, print_summary
from rlhf_cli.progress.terminal import TerminalProgress
from rlhf_cli.report.write import write_report
from rlhf_cli.run_folder import RunFolder
from rlhf_cli.versions import record_versions

Progress = TerminalProgress | LineProgress


def run_here(job: RLHFJob, folder: RunFolder, again: str, is_verbose: bool) -> int:
    """Train a job whose paths are absolute; the exit code. `again`: the command that goes on."""
    console = console_for(sys.stderr)
    try:
        job = _run(job, folder, console, is_verbose)
    except KeyboardInterrupt as interrupt:
        console.print(f"Stopped. To go on where it stopped: {again}", soft_wrap=True, markup=False)
        return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED
    except OSError as error:  # a full disk, most often; what writes a few bytes names no file
        raise Failure(
            f"{error.filename or folder.path}: {error.strerror or error}",
            f"once that is mended, go on where it stopped: {again}",
            exit_code=IO_ERROR,
        ) from None
    if job.status is not None and job.status.phase == "Succeeded":
        cause, code = list[str](), DONE
    else:
        cause, told = explain(job, folder)
        code = told or FAILED
    with suppress(BrokenPipeError):
        _tell(job, folder, cause)
    return code


class _Lines(LineProgress):
    """Training goes on where nobody reads of it any more, as with `2>&1 | head`."""

    def say(self, text: str) -> None:
        try:
            super().say(text)
        except BrokenPipeError:
            nobody_reads(sys.stderr)


def _run(job: RLHFJob, folder: RunFolder, console: Console, is_verbose: bool) -> RLHFJob:
    progress: Progress = TerminalProgress(console) if console.is_interactive else _Lines(sys.stderr)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGINT, _interrupt(progress))

    @cache
    def record() -> None:
        record_versions(folder.versions)

    def on_change(job: RLHFJob) -> None:
        record()  # not before: until something changes, the directory may be another run's
        progress.show(job)

    with ExitStack() as stack:
        stack.enter_context(progress)
        if is_verbose:
            stack.enter_context(LogFollower(folder.path / "pods", progress.say))
        machine = local.this_machine()
        fitted = local.fit_to_machine(job, len(machine.gpus), machine.cpus)
        for line in local.smaller_here(job, fitted):
            progress.say(line)
        progress.show(job)
        try:
            job = local.run(
                job,
                folder.path,
                on_change=on_change,
                on_event=folder.record_event,
                machine=machine,
            )
        except local.LocalRunError as error:
            raise Failure(str(error)) from None
        progress.show(job)
    return job


def _interrupt(progress: Progress) -> Callable[[int, FrameType | None], NoReturn]:
    """Ctrl-C: say at once what is going on, since saving may take a while."""
    messages = ["Stopping: the trainers save their state first (Ctrl-C again: without saving) …"]

    def handler(signum: int, frame: FrameType | None) -> NoReturn:
        progress.say(messages.pop() if messages else "Stopping at once …")
        raise KeyboardInterrupt

    return handler


def _tell(job: RLHFJob, folder: RunFolder, cause: list[str]) -> None:
    """Table, report, and on a failure its cause."""
    console = console_for(sys.stdout)
    print_summary(console, job, datetime.now(UTC))
    try:
        bring_records(folder, job)
        console.print(f"Report: {write_report(folder)}", soft_wrap=True, markup=False)
    except Failure as failure:  # a finished training is not failed by its report
        print(f"{program()}: {failure}", file=sys.stderr)
    if cause:
        sys.stdout.flush()
        print("\n".join(cause), file=sys.stderr)
    else:
        console.print(
            f"Talk to the model: {command('chat', '--dir', str(folder.path))}",
            soft_wrap=True,
            markup=False,
        )
