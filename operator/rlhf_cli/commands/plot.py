"""rlhfctl plot: the curves of a stage, in the terminal or as an image."""

from __future__ import annotations

import argparse
import asyncio
import sys
from importlib.util import find_spec
from pathlib import Path

from rlhf_cli.failures import DONE, Failure
from rlhf_cli.plotting import chosen_stage, lines_of, terminal_chart
from rlhf_cli.progress.summary import console_for
from rlhf_cli.report.collect import collect
from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import parsed

IMAGES = (".png", ".svg")


def execute(args: argparse.Namespace) -> int:
    """Draw, and with --out say where it is."""
    if args.out and Path(args.out).suffix not in IMAGES:
        raise Failure(f"--out {args.out}: images are {' or '.join(IMAGES)}")
    return asyncio.run(_plot(args))


async def _plot(args: argparse.Namespace) -> int:
    async with target_of(args) as target:
        job = parsed(await target.job(args.job))
        async with target.records(job) as folder:
            run = collect(folder)
    record = chosen_stage(run, args.stage, args.metric)
    lines = lines_of(record, args.metric)
    if args.out:
        if find_spec("matplotlib") is None:
            raise Failure("images need matplotlib: pip install 'rlhf-operator[report]'")
        from rlhf_cli.report.image import write_image

        write_image(Path(args.out), job.metadata.name, record.name, lines)
        print(args.out)
        return DONE
    console = console_for(sys.stdout)
    for metric, points in lines.items():
        for line in terminal_chart(f"{record.name}  {metric}", points, console.width):
            console.print(line, soft_wrap=True, markup=False)
    return DONE
