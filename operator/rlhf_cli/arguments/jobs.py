"""Commands on jobs that are there."""

from __future__ import annotations

import argparse

from rlhf_cli.arguments.command import Commands
from rlhf_cli.arguments.shared import change, lines, on_job, on_jobs, seconds, timeout, waiting


def add(commands: Commands) -> None:
    """What looks at jobs, what changes them, what brings results."""
    _look(commands)
    _change(commands)
    _results(commands)


def _look(commands: Commands) -> None:
    get = commands.add_parser("get", help="show a job, or all of a namespace")
    listing = commands.add_parser("list", help="show all jobs")
    for command in (get, listing):
        on_job(command)
        command.add_argument(
            *("-o", "--output"),
            choices=("table", "wide", "json", "yaml", "name"),
            default="table",
            help="form of the output",
        )
        command.add_argument("-w", "--watch", action="store_true", help="go on with each change")
        command.add_argument("-l", "--selector", metavar="LABELS", help="such as team=a,tier!=test")
        command.add_argument(
            "-A", "--all-namespaces", action="store_true", help="jobs of every namespace"
        )
    on_job(commands.add_parser("describe", help="tell all about a job, and what to do next"))
    status = commands.add_parser("status", help="show how far a job is")
    on_job(status)
    status.add_argument(
        "-o", "--output", choices=("text", "json", "yaml"), default="text", help="how to say it"
    )
    watch = commands.add_parser(
        "watch", help="follow a job live: stages, pods, curves, why it waits"
    )
    on_job(watch)
    timeout(watch)
    logs = commands.add_parser("logs", help="show what the trainers log")
    on_job(logs)
    _which_logs(logs)
    events = commands.add_parser("events", help="show what has happened")
    on_job(events)
    events.add_argument("-w", "--watch", action="store_true", help="go on with what happens next")
    events.add_argument(
        "-o", "--output", choices=("table", "json"), default="table", help="form of the output"
    )


def _which_logs(logs: argparse.ArgumentParser) -> None:
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job has ended")
    logs.add_argument("--stage", metavar="NAME", help="of this stage (default: those under way)")
    logs.add_argument(
        "--attempt", type=int, metavar="N", help="of this attempt (default: the newest)"
    )
    logs.add_argument(
        "--rank", type=int, metavar="N", help="of this rank alone (default: all of them)"
    )
    logs.add_argument(
        "--tail",
        type=lines,
        metavar="N",
        help="begin with the last N lines of each pod, or of the rank (default: -1, all)",
    )
    logs.add_argument(
        "--since", type=seconds, metavar="TIME", help="only of the last 90s, 15m, 24h"
    )
    logs.add_argument("--timestamps", action="store_true", help="begin each line with its time")
    logs.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="a colour for each rank",
    )


def _change(commands: Commands) -> None:
    suspend = commands.add_parser("suspend", help="stop a job; it saves and gives its devices back")
    on_jobs(suspend)
    change(suspend)
    waiting(suspend, "its pods have ended")
    resume = commands.add_parser("resume", help="let a suspended job go on from its checkpoints")
    on_jobs(resume)
    change(resume)
    approve = commands.add_parser(
        "approve", help="let the stages start that wait for a person's approval"
    )
    on_job(approve)
    approve.add_argument("stage", metavar="STAGE", help="stage whose result is approved")
    change(approve)
    retry = commands.add_parser("retry", help="give stages that failed for good another try")
    on_jobs(retry)
    change(retry)
    retry.add_argument(
        "--stage",
        action="append",
        default=[],
        metavar="NAME",
        help="this stage alone (default: all that failed); may be given again",
    )
    cancel = commands.add_parser("cancel", help="stop a job and wait until its devices are free")
    on_jobs(cancel)
    change(cancel)
    cancel.add_argument("--now", action="store_true", help="without letting the trainers save")
    timeout(cancel)
    delete = commands.add_parser("delete", help="delete a job; its checkpoints stay")
    on_jobs(delete)
    change(delete)
    delete.add_argument(
        "--checkpoints", action="store_true", help="delete the claim with its checkpoints, too"
    )
    delete.add_argument(
        "--force",
        action="store_true",
        help="without letting the trainers save; ends a run on this machine that goes on",
    )
    delete.add_argument("-y", "--yes", action="store_true", help="do not ask")
    delete.add_argument(
        "--no-wait", action="store_true", help="do not wait until its pods are gone"
    )


def _results(commands: Commands) -> None:
    report = commands.add_parser("report", help="write a job's report: one HTML file")
    on_job(report)
    report.add_argument(
        "--out", metavar="FILE", help="where to (default: JOB.html, DIR/report.html)"
    )
    plot = commands.add_parser("plot", help="draw curves in the terminal, or as PNG or SVG")
    on_job(plot)
    plot.add_argument(
        "--stage", metavar="NAME", help="of this stage (default: the last that has the metrics)"
    )
    plot.add_argument(
        "-m",
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="such as ppo/reward (default: those that matter most); may be given again",
    )
    plot.add_argument("--out", metavar="FILE", help="write an image, .png or .svg, instead")
    fetch = commands.add_parser("fetch", help="bring a checkpoint to this machine, and verify it")
    on_job(fetch)
    fetch.add_argument("--stage", metavar="NAME", help="of this stage (default: the newest policy)")
    fetch.add_argument("--out", metavar="FOLDER", help="where to (default: JOB-STAGE)")
    chat = commands.add_parser("chat", help="talk to a trained model")
    on_job(chat)
    chat.add_argument(
        "--stage",
        choices=("base", "sft", "ppo", "dpo"),
        help="whose model (default: the last stage's that is there)",
    )
