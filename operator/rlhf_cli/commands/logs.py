"""rlhfctl logs: what the pods of a stage write, each rank in a colour of its own."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import AsyncIterator
from typing import Final

from rlhf_api.job import RLHFJob

from rlhf_cli.failures import DENIED, DONE, Failure
from rlhf_cli.progress.summary import console_for
from rlhf_cli.selection import Wish, check, first_rank, selected
from rlhf_cli.targets.resolve import target_of
from rlhf_cli.targets.target import LogOptions, PodView, Target, ending, parsed

COLOURS: Final = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
"""Of the terminal, by the rank."""
OF_RANK: Final = re.compile(r"(?P<time>\d{4}-\S+ )?(?P<mark>\[rank (?P<rank>\d{1,6})\] )")
"""How lines of ranks that share a pod begin (rlhf_trainer.launcher.rank_lines), after a time."""
LOOK_EVERY: Final = 1.0


def execute(args: argparse.Namespace) -> int:
    """Print or follow them."""
    return asyncio.run(_logs(args))


async def _logs(args: argparse.Namespace) -> int:
    wish = Wish(args.stage, args.attempt, args.rank)
    options = LogOptions(args.follow, args.tail, args.since, args.timestamps)
    console = console_for(sys.stdout)  # which heeds NO_COLOR and TERM=dumb
    has_colours = console.color_system is not None and not console.no_color
    coloured = args.color == "always" or (args.color == "auto" and has_colours)
    async with target_of(args) as target:
        job = parsed(await target.job(args.job))
        check(job, wish)
        if args.follow:
            await Following(target, args.job, wish, options, coloured).run()
            return DONE
        pods = selected(job, await target.pods(job), wish)
        if not pods:
            raise Failure(*_nothing(target, job, wish))
        for pod in pods:
            async for line in _lines(target, pod, options, wish):
                print(marked(pod, line, first_rank(job, pod), coloured, alone=len(pods) == 1))
    return DONE


class Following:
    """Follows each pod that fits, and those that come later, until the job has ended."""

    def __init__(
        self, target: Target, name: str | None, wish: Wish, options: LogOptions, coloured: bool
    ) -> None:
        self._target, self._name, self._wish = target, name, wish
        self._options, self._coloured = options, coloured
        self._begun: set[tuple[str, int]] = set()  # pods of one name may be made again
        self._pods: list[PodView] | None = []  # None: they have to be listed

    async def run(self) -> None:
        """Returns when nothing more will come. Raises Failure, and what printing raises."""
        try:
            async with asyncio.TaskGroup() as tasks:  # which waits for all of them
                await self._follow_all(tasks)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _follow_all(self, tasks: asyncio.TaskGroup) -> None:
        job = parsed(await self._target.job(self._name))
        watching = tasks.create_task(self._watch_pods(job))
        while True:
            is_over = await self._is_over(job)
            for pod in await self._new_pods(job, is_over):
                tasks.create_task(self._follow(pod, first_rank(job, pod)))
            if is_over:
                watching.cancel()
                return
            await asyncio.sleep(LOOK_EVERY)
            job = parsed(await self._target.job(self._name))

    async def _watch_pods(self, job: RLHFJob) -> None:
        """Instead of lists: those of 512 pods are several MB, each second."""
        try:
            async for pods in self._target.follow_pods(job):
                self._pods = pods
        except Failure as failure:
            if failure.exit_code != DENIED:
                raise
            self._pods = None  # who may list pods, and not watch them

    async def _new_pods(self, job: RLHFJob, is_over: bool) -> list[PodView]:
        """At the end as they are then: the last ones may not have been told of yet."""
        is_listed = is_over or self._pods is None
        pods = await self._target.pods(job) if is_listed else self._pods or []
        found = selected(job, pods, self._wish)
        ready = [pod for pod in found if pod.phase not in ("Pending", "Waiting")]
        fresh = [pod for pod in ready if (pod.name, pod.attempt) not in self._begun]
        self._begun |= {(pod.name, pod.attempt) for pod in fresh}
        return fresh

    async def _is_over(self, job: RLHFJob) -> bool:
        """Whether no pod will fit any more that is not there yet."""
        if ending(job) or not await self._target.is_worked_on(job):
            return True
        stage = self._wish.stage
        return stage is not None and job.stage_statuses()[stage].phase in ("Succeeded", "Failed")

    async def _follow(self, pod: PodView, first: int) -> None:
        async for line in _lines(self._target, pod, self._options, self._wish):
            print(marked(pod, line, first, self._coloured, alone=False), flush=True)


async def _lines(
    target: Target, pod: PodView, options: LogOptions, wish: Wish
) -> AsyncIterator[str]:
    """Of the rank that is asked for; a line that names none is the launcher's, so of all ranks."""
    asked = await _reaching(target, pod, options, wish)
    async for line in target.log(pod, asked):
        if _is_of(wish.rank, line):
            yield line


async def _reaching(target: Target, pod: PodView, options: LogOptions, wish: Wish) -> LogOptions:
    """As far back as the last lines of the rank are, with what others wrote meanwhile."""
    if wish.rank is None or not options.tail:
        return options
    whole = options._replace(follow=False, tail=None)
    lines = [line async for line in target.log(pod, whole)]
    ours = [number for number, line in enumerate(lines) if _is_of(wish.rank, line)]
    begin = ours[-options.tail] if len(ours) >= options.tail else 0
    return options._replace(tail=len(lines) - begin)


def _is_of(rank: int | None, line: str) -> bool:
    if rank is None:
        return True
    named = OF_RANK.match(line)
    return named is None or int(named["rank"]) == rank


def marked(pod: PodView, line: str, first: int, coloured: bool, *, alone: bool) -> str:
    """`ppo-0 | line`, of a pod whose ranks begin with `first`; `alone`: the line as it is.

    The colour is that of the rank which the line names, else of the pod's first one.
    """
    named = OF_RANK.match(line)
    time, mark, text = "", f"{pod.stage}-{pod.completion_index} | ", line
    if alone:
        mark = ""
        if named:
            time, mark, text = named["time"] or "", named["mark"], line[named.end() :]
    if coloured and mark:
        rank = int(named["rank"]) if named else first
        mark = f"\x1b[{COLOURS[rank % len(COLOURS)]}m{mark.rstrip()}\x1b[0m "
    return time + mark + text


def _nothing(target: Target, job: RLHFJob, wish: Wish) -> list[str]:
    """Why there is no log, in lines."""
    name = job.metadata.name
    which = f" of stage {wish.stage}" if wish.stage else ""
    went = "their folders" if target.is_one_job else "ttlSecondsAfterFinished, or a deletion"
    return [
        f"{name} has no pods{which} whose log could be shown: they have not been made yet, or are "
        f"gone ({went})",
        f"see how it stands: {target.command('describe', job=name)}",
    ]
