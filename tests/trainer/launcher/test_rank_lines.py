"""What the ranks of a pod write: whole lines, each with its rank, and all of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rlhf_trainer.launcher import launch, rank_lines
from rlhf_trainer.launcher.rank_lines import RankLines
from trainer_pod import free_port

RANKS = """
import ctypes, os, pathlib, signal, sys, time
rank = os.environ["RANK"]
print("by Python")
sys.stderr.write("by Python's stderr\\n")
ctypes.CDLL(None).dprintf(1, b"by C\\n")
os.write(2, b"by a system call\\n")
print(rank * 300_000, flush=True)
pathlib.Path(f"said-{rank}").touch()
while not os.path.exists("said-0"):
    time.sleep(0.01)
if rank == "1":
    os.write(2, b"last words")
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"""


class Log:
    """That of a pod, and a rank that writes to it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.lines = RankLines()
        self._rank = os.open(self.lines.path(7, self._log), os.O_WRONLY)
        self.lines.start()

    def write(self, text: str | bytes) -> None:
        os.write(self._rank, text if isinstance(text, bytes) else text.encode())

    def read(self) -> str:
        return self._file.read_text()

    def until(self, shown: str) -> None:
        """Waits for what the log is to be."""
        end = time.monotonic() + 120
        while self.read() != shown:
            assert time.monotonic() < end, self.read()
            time.sleep(0.01)

    def close(self) -> None:
        os.close(self._rank)
        os.close(self._log)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    monkeypatch.setattr(rank_lines, "PATIENCE", 60.0)  # as pieces may come late on a busy machine
    made = Log(tmp_path / "log.txt")
    yield made
    made.close()


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["one\ntwo\n"], ["one", "two"]),
        (["on", "e", "\n", "\n"], ["one", ""]),
        (["no end"], ["no end"]),
        (["你".encode()[:2], "你".encode()[2:], "\n"], ["你"]),
        (["as Windows does\r\n"], ["as Windows does"]),
        (["\r10%", "\r20%", "\r100%\n", "done\n"], ["100%", "done"]),
        (["10%\r", "20%\r"], ["20%"]),
        (["\r50%\r   \r", "done\n"], ["done"]),
    ],
)
def test_pieces_become_whole_lines(log: Log, pieces: list[str | bytes], shown: list[str]) -> None:
    with log.lines:
        for piece in pieces:
            log.write(piece)
    assert log.read() == "".join(f"[rank 7] {line}\n" for line in shown)


def test_a_line_whose_end_does_not_come_is_shown_after_a_moment(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_lines, "PATIENCE", 0.05)
    with log.lines:
        log.write("whole\n\r10%\r20%")
        log.until("[rank 7] whole\n[rank 7] 20%\n")
        log.write("\n")  # the end of what has been shown is no line of its own
        log.write("next\n")
        log.until("[rank 7] whole\n[rank 7] 20%\n[rank 7] next\n")


def test_a_line_is_kept_whole_up_to_a_megabyte(log: Log) -> None:
    with log.lines:
        log.write("a" * rank_lines.LONGEST + "\n")
        log.write("b" * (rank_lines.LONGEST + rank_lines.BLOCK + 1) + "\n")
    first, *parts = log.read().splitlines()
    assert first == "[rank 7] " + "a" * rank_lines.LONGEST
    assert all(part.startswith("[rank 7] b") for part in parts)
    assert sum(part.count("b") for part in parts) == rank_lines.LONGEST + rank_lines.BLOCK + 1


def test_ranks_go_on_where_nobody_reads_the_log_any_more() -> None:
    reader, log = os.pipe()
    os.close(reader)
    with RankLines() as lines:
        rank = os.open(lines.path(0, log), os.O_WRONLY)
        lines.start()
        os.write(rank, b"a line\n" * 100_000)  # ten times what a pipe holds
    os.close(rank)
    os.close(log)


def test_a_process_that_outlives_its_rank_does_not_keep_the_launcher(log: Log) -> None:
    with log.lines:
        log.write("its parent's pipe is open\n")
    with pytest.raises(BrokenPipeError):  # and is told so, where it would wait for a reader
        log.write("later\n")
    assert log.read() == "[rank 7] its parent's pipe is open\n"


def test_each_line_of_two_ranks_tells_which_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rlhf_trainer").mkdir()
    (tmp_path / "rlhf_trainer" / "__init__.py").touch()
    (tmp_path / "rlhf_trainer" / "__main__.py").write_text(RANKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(launch, "pass_signals_on", lambda: None)
    options = ["--nproc-per-node", "2", "--master-port", str(free_port()), "stage.yaml"]
    assert launch.main(options) == 137
    out, err = (text.splitlines() for text in capfd.readouterr())
    for rank in ("0", "1"):
        assert sorted(line for line in out if line.startswith(f"[rank {rank}] ")) == [
            f"[rank {rank}] {rank * 300_000}", f"[rank {rank}] by C", f"[rank {rank}] by Python",
        ]  # fmt: skip
    assert len(out) == 6
    assert sorted(line for line in err if line.startswith("[rank 0] ")) == [
        "[rank 0] by Python's stderr", "[rank 0] by a system call",
    ]  # fmt: skip
    assert sorted(line for line in err if line.startswith("[rank 1] ")) == [
        "[rank 1] by Python's stderr", "[rank 1] by a system call", "[rank 1] last words",
    ]  # fmt: skip
    assert err[-1] == "rank 1 ended with -9"


def test_a_pod_numbers_its_ranks_as_the_gang_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_trainer.launcher.rank_pipes import RankPipes

    made: list[tuple[int, int]] = []

    class Noted(RankLines):
        def path(self, rank: int, to: int) -> str:
            made.append((rank, to))
            return super().path(rank, to)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Noted() as lines:
        found = RankPipes(lines).reify({0: {"RANK": "2"}, 1: {"RANK": "3"}})
    assert made == [(2, 1), (2, 2), (3, 1), (3, 2)]
    assert len({*found.stdouts.values(), *found.stderrs.values()}) == 4
