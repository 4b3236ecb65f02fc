"""rlhfctl's command line. Commands are imported when they are called, so that --help is quick."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final, NoReturn

from rlhf_cli.failures import DONE, INTERRUPTED, IO_ERROR, TERMINATED, USAGE, Failure

EPILOG: Final = """\
exit codes:
  0    done
  64   a wrong flag or manifest, or a file that is not there
  65   a checkpoint is unusable        66   training diverged
  69   no cluster answers              77   the cluster does not allow it
  74   the disk refused                75   not now, but it may pass: run again
  130  stopped by Ctrl-C               143  stopped by SIGTERM
  1    a stage failed without saying how
"""


class Parser(argparse.ArgumentParser):
    """argparse, with the exit code that means bad usage everywhere else in this project."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and how to learn more."""
        self.exit(USAGE, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


class Version(argparse.Action):
    """Print the installed version; it is looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print and leave."""
        from importlib.metadata import version

        print(f"rlhfctl {version('rlhf-operator')}")
        parser.exit(DONE)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their flags."""
    parser = Parser(
        prog="rlhfctl",
        description="RLHF from one manifest: check it, run it here, follow it on a cluster.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    _add_manifest_commands(commands)
    _add_directory_commands(commands)
    _add_cluster_commands(commands)
    return parser


def _add_manifest_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    validate = commands.add_parser(
        "validate", help="check manifests and name everything that is wrong"
    )
    validate.add_argument(
        "files", nargs="+", metavar="FILE", help="manifest; '-' reads standard input"
    )
    validate.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="how to say it"
    )
    schema = commands.add_parser("schema", help="print the JSON schema of a manifest")
    schema.add_argument(
        "--crd", action="store_true", help="print the CustomResourceDefinition, as YAML, instead"
    )
    render = commands.add_parser(
        "render", help="print the Kubernetes objects that a manifest leads to"
    )
    render.add_argument("file", metavar="FILE", help="manifest; '-' reads standard input")
    run = commands.add_parser("run", help="run a manifest on this machine")
    run.add_argument("file", metavar="FILE", help="manifest")
    run.add_argument(
        "--dir",
        metavar="DIR",
        help="where everything goes; a second run goes on there (default: runs/NAME)",
    )
    run.add_argument("-v", "--verbose", action="store_true", help="show what the trainers log")
    for command in (validate, render, run):
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="PATH=VALUE",
            help="set a field, such as spec.stages.ppo.kl.coef=0.05; may be given again",
        )


def _add_directory_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    status = commands.add_parser("status", help="show how far a run is")
    status.add_argument(
        "-o", "--output", choices=("text", "json", "yaml"), default="text", help="how to say it"
    )
    report = commands.add_parser("report", help="write report.html of a run anew")
    chat = commands.add_parser("chat", help="talk to a trained model")
    chat.add_argument(
        "--stage",
        choices=("base", "sft", "ppo", "dpo"),
        help="whose model (default: the last stage's that is there)",
    )
    for command in (status, report, chat):
        command.add_argument(
            "dir", metavar="DIR", help="the directory given to 'rlhfctl run --dir'"
        )


def _add_cluster_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    approve = commands.add_parser(
        "approve", help="let the stages start that wait for a person's approval"
    )
    approve.add_argument("job", nargs="?", metavar="JOB", help="name of the RLHFJob")
    approve.add_argument("stage", metavar="STAGE", help="stage whose result is approved")
    approve.add_argument(
        "--dir", metavar="DIR", help="a run on this machine, in place of JOB on a cluster"
    )
    for command in (approve,):
        command.add_argument(
            "-n", "--namespace", metavar="NAME", help="namespace (default: the kubeconfig's)"
        )
        command.add_argument("--context", metavar="NAME", help="context of the kubeconfig")
        command.add_argument("--kubeconfig", metavar="FILE", help="kubeconfig to use")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    args = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a manifest may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        command = importlib.import_module(f"rlhf_cli.commands.{args.command}")
        code: int = command.execute(args)
        sys.stdout.flush()
        return code
    except Failure as failure:
        print(f"rlhfctl: {failure}", file=sys.stderr)
        return failure.exit_code
    except BrokenPipeError:  # the reader of our output went away: `rlhfctl schema | head`
        sys.stderr.close()
        return DONE
    except KeyboardInterrupt as interrupt:
        return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED
    except OSError as error:
        print(
            f"rlhfctl: {error.filename or 'input or output'}: {error.strerror or error}",
            file=sys.stderr,
        )
        return IO_ERROR


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does: trainers save first."""


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated
