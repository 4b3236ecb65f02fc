"""Ranks as processes forked from one that has imported everything: a run starts at once.

What a fork would hide (the launcher, imports, the exit code of `python -m`) is tested elsewhere.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from unittest.mock import patch

from rlhf_trainer.quiet import silence_libraries

PRELOADED = [
    "loaded_deepspeed",
    "peft",
    "tensorboard.summary.writer.event_file_writer",
    "transformers.models.llama.modeling_llama",
    "rlhf_trainer.__main__",
    "rlhf_trainer.stages.sft",
]


@cache
def _context() -> ForkServerContext:
    silence_libraries()  # libraries read its variables as they load, and the server loads them
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # Its own path is Python's alone in 3.11, and what it does not find it leaves out in silence.
    folders = (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, folders))):
        forkserver.ensure_running()
    return context


class ForkedRun:
    """All ranks of one stage's attempt."""

    def __init__(
        self,
        directory: Path,
        ranks: int,
        port: int,
        body: Callable[[], int] | None = None,
        *others: Path,
    ) -> None:
        """`others` are the directories of further nodes, with as many ranks each."""
        self.log_file = directory / "log.txt"
        self.log_file.unlink(missing_ok=True)
        nodes = [directory, *others]
        places = [
            (node, number * ranks + rank, rank, ranks, len(nodes) * ranks, port)
            for number, node in enumerate(nodes)
            for rank in range(ranks)
        ]
        self.processes: list[ForkServerProcess] = [
            _context().Process(target=_run, args=(*place, body or _stage), daemon=True)
            for place in places
        ]
        for process in self.processes:
            process.start()

    def kill(self) -> None:
        """SIGKILL to all ranks."""
        for process in self.processes:
            process.kill()
        self.wait()

    def terminate(self) -> None:
        """SIGTERM to the first rank alone: the others must hear of it from it."""
        assert self.processes[0].pid is not None
        os.kill(self.processes[0].pid, signal.SIGTERM)

    @property
    def is_running(self) -> bool:
        """Whether any rank is."""
        return any(process.is_alive() for process in self.processes)

    def wait(self) -> list[int | None]:
        """The exit code of each rank."""
        for process in self.processes:
            process.join(timeout=300)
        return [process.exitcode for process in self.processes]

    @property
    def log(self) -> str:
        """What all ranks wrote."""
        return self.log_file.read_text("utf-8") if self.log_file.exists() else ""


def _run(
    directory: Path,
    rank: int,
    local_rank: int,
    local_ranks: int,
    ranks: int,
    port: int,
    body: Callable[[], int],
) -> None:
    os.chdir(directory)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(local_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    sys.exit(body())


def _stage() -> int:
    from rlhf_trainer.__main__ import main

    return main(["run", "config/stage.yaml"])
