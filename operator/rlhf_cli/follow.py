"""Following a job to its end, in a terminal or in lines for a log."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable

from rlhf_api.job import RLHFJob

from rlhf_cli.failures import DONE, FAILED, TRANSIENT, Failure
from rlhf_cli.next_steps import next_steps
from rlhf_cli.progress.history import History, from_log
from rlhf_cli.progress.lines import LineProgress
from rlhf_cli.progress.screen import Screen
from rlhf_cli.progress.summary import console_for
from rlhf_cli.targets.target import (
    LogOptions,
    PodView,
    Scope,
    Target,
    ending,
    parsed,
)
from rlhf_cli.waiting import within


async def follow(target: Target, name: str | None, timeout: float | None) -> int:
    """Shows it until it is Ready (0), or cannot go on (its trainer's exit code, or 1)."""
    job = await within(timeout, _shown(target, name), "the end of the job")
    steps = list(next_steps(target, job, is_alive=await target.is_worked_on(job)))
    for step in steps:
        print(step)
    return _exit_code(job)


def _exit_code(job: RLHFJob) -> int:
    match ending(job):
        case "Ready":
            return DONE
        case "Stalled":
            ends = [
                stage.ended for stage in job.stage_statuses().values() if stage.phase == "Failed"
            ]
            return next((end.exit_code for end in ends if end and end.exit_code), FAILED)
        case _:
            return TRANSIENT


async def _shown(target: Target, name: str | None) -> RLHFJob:
    console = console_for(sys.stdout)
    if not console.is_interactive:  # TERM=dumb, too: nothing live is shown there
        with LineProgress(sys.stdout) as lines:
            return await _until_the_end(target, name, lines.show)
    with Screen(console, target.place) as screen:
        side = asyncio.create_task(_look_around(target, name, screen))
        try:
            return await _until_the_end(target, name, screen.show)
        finally:
            side.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await side


async def _until_the_end(
    target: Target, name: str | None, show: Callable[[RLHFJob], None]
) -> RLHFJob:
    job = None
    async for kind, item in target.watch(name, Scope()):
        if kind == "DELETED":
            raise Failure(f"{name} was deleted")
        job = parsed(item)
        show(job)
        if ending(job):
            return job
    assert job is not None  # a watch begins with what is there, or raises
    return job  # a run here on which nothing works any more


async def _look_around(target: Target, name: str | None, screen: Screen) -> None:
    """Pods with the curves of their logs, and events. What may not be read is left out."""
    with contextlib.suppress(Failure):
        job = parsed(await target.job(name))
        pods, events = _look_at_pods(target, job, screen), _look_at_events(target, job, screen)
        await asyncio.gather(pods, events)


async def _look_at_pods(target: Target, job: RLHFJob, screen: Screen) -> None:
    read: set[tuple[str, int]] = set()
    with contextlib.suppress(Failure):
        async for screen.pods in target.follow_pods(job):
            for pod in screen.pods:
                key = (pod.stage, pod.attempt)
                has_begun = pod.phase not in ("Pending", "Waiting")
                is_first = pod.completion_index == 0 and pod.stage in job.stage_statuses()
                if is_first and has_begun and key not in read:
                    read.add(key)
                    with contextlib.suppress(Failure):
                        await _read_log(target, pod, screen.history)


async def _look_at_events(target: Target, job: RLHFJob, screen: Screen) -> None:
    with contextlib.suppress(Failure):
        async for screen.events in target.follow_events(job):
            pass


async def _read_log(target: Target, pod: PodView, history: History) -> None:
    lines = [line async for line in target.log(pod, LogOptions(tail=2000))]
    history.begin(pod.stage, from_log(lines))
