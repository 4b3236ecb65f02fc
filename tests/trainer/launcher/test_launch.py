"""The launcher of a pod's ranks: pods of a gang wait for each other, and end when they are told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rlhf_api.run import GANG_INCOMPLETE, TERMINATION_LOG, ExitCode
from rlhf_trainer.launcher import gathering, launch
from trainer_pod import free_port

Start = Callable[..., subprocess.Popen[str]]

AS_PROCESS_1 = """
import sys
from rlhf_trainer.__main__ import end_at_sigterm, main
end_at_sigterm()
sys.exit(main(["launch", *sys.argv[1:]]))
"""
BEFORE_RANKS = """
import os, signal, subprocess
from rlhf_trainer.launcher.launch import pass_signals_on
pass_signals_on()
os.kill(os.getpid(), signal.SIGTERM)
print(subprocess.Popen(["sleep", "600"]).wait(120))
"""


def of_two(index: int, port: int) -> list[str]:
    """Options of a pod of a gang of two."""
    return ["--nnodes", "2", "--node-rank", str(index), "--master-port", str(port), "stage.yaml"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a pod as the first process of its container."""
    started = []

    def run(index: int, port: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", AS_PROCESS_1, *of_two(index, port)],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def until_it_waits(process: subprocess.Popen[str]) -> str:
    """What it says of whom it waits for."""
    assert process.stderr is not None
    return next(line for line in process.stderr if "Waiting for" in line)


@pytest.mark.parametrize(("index", "other"), [(0, "1"), (1, "0")])
def test_a_pod_that_waits_for_its_gang_says_so_and_ends_at_once(
    start: Start, index: int, other: str
) -> None:
    process = start(index, free_port())
    assert until_it_waits(process).rstrip().endswith(f"(of 2): {other}")
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == ExitCode.TERMINATED


@pytest.mark.parametrize("first", [0, 1])
def test_pods_that_come_one_after_the_other_run_their_ranks(start: Start, first: int) -> None:
    port = free_port()
    early = start(first, port)
    until_it_waits(early)
    late = start(1 - first, port)
    assert {early.wait(180), late.wait(180)} == {ExitCode.CONFIGURATION}  # there is no stage file


def test_ranks_that_are_about_to_start_are_told_to_end() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BEFORE_RANKS], capture_output=True, text=True, timeout=180
    )
    assert done.stdout == f"{-signal.SIGTERM}\n"


@pytest.mark.parametrize(
    ("numbers", "told"),
    [((), ""), ((7,), "7"), ((0, 2, 3, 4), "0, 2-4"), (range(1, 512), "1-511")],
)
def test_of_hundreds_of_pods_that_are_missing_spans_are_told(
    numbers: Sequence[int], told: str
) -> None:
    assert gathering.in_spans(numbers) == told


@pytest.mark.parametrize(("index", "missing"), [(0, "1"), (1, "0")])
def test_a_gang_whose_pods_do_not_come_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: int, missing: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gathering, "WITHIN", 1.0)
    assert launch.main(of_two(index, free_port())) == ExitCode.TRANSIENT
    told: dict[str, Any] = json.loads(Path(TERMINATION_LOG).read_text("utf-8"))
    assert told["reason"] == GANG_INCOMPLETE
    assert told["message"].endswith(f"missing: {missing}")
