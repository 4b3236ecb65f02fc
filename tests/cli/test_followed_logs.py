"""Following the logs of several pods at once."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rlhf_api.job import RLHFJob
from rlhf_cli.commands.logs import Following
from rlhf_cli.selection import Wish
from rlhf_cli.targets.directory import Directory
from rlhf_cli.targets.target import LogOptions, PodView
from synthetic_run import write_run


class TwoPods(Directory):
    """A run whose pods write for ever."""

    async def pods(self, job: RLHFJob) -> list[PodView]:
        return [PodView(f"ppo-1-{index}", "ppo", 1, index, "Running") for index in range(2)]

    async def log(self, pod: PodView, options: LogOptions) -> AsyncIterator[str]:
        while True:
            yield "a line"
            await asyncio.sleep(0)


class Gone(io.StringIO):
    """A pipe into `head` that has seen enough."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_reader_of_followed_logs_that_goes_away_is_that_and_no_group_of_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path)
    following = Following(TwoPods(str(tmp_path)), None, Wish(), LogOptions(follow=True), False)
    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(BrokenPipeError):
        asyncio.run(following.run())
