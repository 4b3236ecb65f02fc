"""Following the logs of several pods at once."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rlhf_api.job import RLHFJob
from rlhf_api.status import StageStatus
from rlhf_cli.commands import logs
from rlhf_cli.commands.logs import Following
from rlhf_cli.failures import DENIED, Failure
from rlhf_cli.selection import Wish
from rlhf_cli.targets.directory import Directory
from rlhf_cli.targets.target import LogOptions, Object, PodView
from synthetic_run import write_run


class TwoPods(Directory):
    """A run whose pods write for ever."""

    async def pods(self, job: RLHFJob) -> list[PodView]:
        return [PodView(f"ppo-1-{index}", "ppo", 1, index, "Running") for index in range(2)]

    async def log(self, pod: PodView, options: LogOptions) -> AsyncIterator[str]:
        while True:
            yield "a line"
            await asyncio.sleep(0)


class Waits(Directory):
    """A job that goes on for fifty looks. The second of its pods comes in the last one."""

    lists, looks = 0, 0

    async def job(self, name: str | None) -> Object:
        self.looks += 1
        return await super().job(name)

    async def is_worked_on(self, job: RLHFJob) -> bool:
        return self.looks < 50

    async def pods(self, job: RLHFJob) -> list[PodView]:
        self.lists += 1
        return [PodView(f"ppo-1-{index}", "ppo", 1, index, "Running") for index in range(2)]

    async def follow_pods(self, job: RLHFJob) -> AsyncIterator[list[PodView]]:
        yield [PodView("ppo-1-0", "ppo", 1, 0, "Running")]
        await asyncio.Event().wait()

    async def log(self, pod: PodView, options: LogOptions) -> AsyncIterator[str]:
        yield "a line"


class MayNotWatch(Waits):
    """The user may list pods, and not watch them."""

    async def follow_pods(self, job: RLHFJob) -> AsyncIterator[list[PodView]]:
        raise Failure("forbidden", exit_code=DENIED)
        yield []


class Gone(io.StringIO):
    """A pipe into `head` that has seen enough."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize(("target", "lists"), [(Waits, 1), (MayNotWatch, 50)])
def test_pods_are_watched_and_not_listed_at_each_look(
    target: type[Waits],
    lists: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_run(tmp_path, ppo=StageStatus(phase="Running"))
    monkeypatch.setattr(logs, "LOOK_EVERY", 0)
    job = target(str(tmp_path))
    asyncio.run(Following(job, None, Wish(), LogOptions(follow=True), False).run())
    assert (job.looks, capsys.readouterr().out) == (50, "ppo-0 | a line\nppo-1 | a line\n")
    assert abs(job.lists - lists) <= 1  # the first look may come before the refusal


def test_a_reader_of_followed_logs_that_goes_away_is_that_and_no_group_of_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path)
    following = Following(TwoPods(str(tmp_path)), None, Wish(), LogOptions(follow=True), False)
    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(BrokenPipeError):
        asyncio.run(following.run())
