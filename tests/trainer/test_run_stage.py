"""What a rank leaves behind: the termination message, and the exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from forked import ForkedRun
from rlhf_api.run import PEER_LOST, TERMINATION_LIMIT, TERMINATION_LOG, ExitCode, StageResult
from rlhf_trainer import run_stage as running
from rlhf_trainer import session as sessions
from rlhf_trainer.errors import BadData
from rlhf_trainer.run_stage import run_stage
from rlhf_trainer.termination import failure, write_termination_message
from trainer_pod import Pod, free_port, small_sft


def left(result: StageResult, gate_metric: str | None = None) -> StageResult:
    write_termination_message(result, gate_metric)
    text = Path(TERMINATION_LOG).read_bytes()
    assert len(text) <= TERMINATION_LIMIT
    return StageResult.model_validate_json(text)


@pytest.mark.parametrize("letter", ["a", "\x01", "字", "😀", "\n", "\ud83d"])
def test_a_long_message_in_any_script_leaves_json_that_is_whole(
    letter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = left(failure(BadData(f"data.jsonl:7: {letter * 2000}", step=3)))
    assert (found.exit_code, found.reason, found.step) == (64, "BadData", 3)
    assert found.message.startswith("data.jsonl:7: ")
    assert len(found.message) >= 256


@pytest.mark.parametrize("word", ["word", "字字字"])
def test_a_long_message_ends_with_a_whole_line_or_word_and_the_log_has_all_of_it(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"  a.jsonl:{n}: {word} is {word}" for n in range(60)]
    found = left(failure(BadData("\n".join(lines)))).message
    assert found.split("\n") == [*lines[: found.count("\n")], "…"]
    assert 900 < len(found.encode()) <= 1024  # what the operator takes without a cut
    found = failure(BadData(f"a.jsonl:1: {' '.join([word] * 400)}")).message
    assert set(found.split(" ")) == {"a.jsonl:1:", word, "…"}

    def train(_: object) -> StageResult:
        raise BadData("\n".join(lines))

    monkeypatch.setattr(running, "_stage", train)
    monkeypatch.setattr(running, "read_stage_file", lambda _: SimpleNamespace(stage="prepare"))
    assert run_stage("config/stage.yaml") == ExitCode.CONFIGURATION
    assert lines[-1] in caplog.text


def test_metrics_give_way_to_digests_of_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = {f"stages.ppo.rewards.judge-{n:02}.function": "sha256:" + "0" * 64 for n in range(24)}
    metrics = {f"eval/{n:020}": 1.0 for n in range(60)}
    done = StageResult(exit_code=ExitCode.DONE, reason="Done", message="m" * 1024, sources=sources)
    found = left(done)
    assert found.sources == sources
    assert left(done.model_copy(update={"metrics": metrics})).sources == sources
    few = done.model_copy(update={"sources": {}, "metrics": metrics})
    assert left(few).metrics == metrics


LAST: Final = "train/" + "z" * 60


@pytest.mark.parametrize("gate_metric", [None, LAST])
def test_the_metrics_that_a_result_is_judged_by_are_the_last_to_give_way(
    gate_metric: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    others = {f"train/{n:060}": 1 / 3 for n in range(80)}
    judged = {"eval/" + "long" * 1200: 1.0, "eval/b": 0.25, "eval/a": 0.5, LAST: 2.0}
    done = StageResult(exit_code=ExitCode.DONE, reason="Done", metrics=others | judged)
    found = left(done, gate_metric)
    assert found.metrics["eval/a"] == 0.5
    assert found.metrics["eval/b"] == 0.25
    assert (LAST in found.metrics) == (gate_metric is not None)
    assert len(found.metrics) > 30
    backwards = dict(reversed(done.metrics.items()))
    assert left(done.model_copy(update={"metrics": backwards}), gate_metric) == found


def test_the_gate_of_the_stage_names_the_metric_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    metrics = {f"eval/{n:060}": 1 / 3 for n in range(80)} | {LAST: 2.0}
    done = StageResult(exit_code=ExitCode.DONE, reason="Done", metrics=metrics)
    gate = SimpleNamespace(metric=LAST)
    run = SimpleNamespace(stage="sft", config=SimpleNamespace(gate=gate))
    monkeypatch.setattr(running, "_stage", lambda _: done)
    monkeypatch.setattr(running, "read_stage_file", lambda _: run)
    assert run_stage("config/stage.yaml") == ExitCode.DONE
    found = StageResult.model_validate_json(Path(TERMINATION_LOG).read_bytes())
    assert found.metrics[LAST] == 2.0


def test_a_disk_that_is_full_anywhere_is_worth_another_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The curve's file, say, between two checkpoints."""
    monkeypatch.chdir(tmp_path)

    def train(_: object) -> StageResult:
        with open("/dev/full", "w", encoding="utf-8") as curve:
            curve.write("1\n")
        raise AssertionError

    monkeypatch.setattr(running, "_stage", train)
    monkeypatch.setattr(running, "read_stage_file", lambda _: SimpleNamespace(stage="prepare"))
    assert run_stage("config/stage.yaml") == ExitCode.TRANSIENT
    found = StageResult.model_validate_json(Path(TERMINATION_LOG).read_bytes())
    assert "No space left on device" in found.message
    assert "Traceback" not in capsys.readouterr().err


def test_a_device_without_room_says_which_settings_need_less_and_stays_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def out_of_memory(*_: Any) -> Any:
        advice = " If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF."
        text = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free." + advice
        raise torch.OutOfMemoryError(text)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "read_stage_file", out_of_memory)
    assert run_stage("config/stage.yaml") == 1
    found = StageResult.model_validate_json(Path(TERMINATION_LOG).read_bytes())
    assert (found.exit_code, found.reason) == (1, "OutOfMemoryError")
    assert "Tried to allocate 2.00 GiB" in found.message
    for setting in ("microBatchSize", "gradientCheckpointing", "zero", "lora"):
        assert setting in found.message


@pytest.mark.parametrize(
    ("kind", "last", "told"),
    [
        (
            "ncclSystemError: System call failed. ",
            "ibv_reg_mr: no memory",
            "NCCL failed: ibv_reg_mr",
        ),
        ("ncclRemoteError: A call failed. ", "socket closed", "another rank was lost: NCCL error"),
    ],
)
def test_what_nccl_met_on_this_node_is_told_and_no_other_rank_is_blamed(
    kind: str, last: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed import DistBackendError

    def fail(*_: Any) -> Any:
        first = "NCCL error in: NCCLUtils.cpp:94, unhandled system error, NCCL version 2.29.3"
        raise DistBackendError(f"{first}\n{kind}\nLast error:\n{last}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "read_stage_file", fail)
    assert run_stage("config/stage.yaml") == ExitCode.TRANSIENT
    found = StageResult.model_validate_json(Path(TERMINATION_LOG).read_bytes())
    assert found.message.startswith(told)
    assert (found.reason == PEER_LOST) is told.startswith("another rank")


def test_what_cannot_be_closed_holds_nothing_else_open() -> None:
    closed: list[str] = []

    def part(name: str) -> Any:
        return SimpleNamespace(close=lambda: closed.append(name))

    def full() -> None:
        raise OSError(28, "No space left on device")

    session: Any = SimpleNamespace(
        telemetry=SimpleNamespace(close=full),
        checkpointer=SimpleNamespace(disk=part("disk")),
        ranks=SimpleNamespace(stop=lambda _: closed.append("ranks")),
        _made={"first": part("first"), "second": part("second")},
    )
    with pytest.raises(OSError, match="No space left"):
        sessions.Session.close(session)
    assert closed == ["first", "second", "disk", "ranks"]


ASKED_TO_LEAVE: Final = 98
ASKED_TO_EXIT: Final = 99


def fail_alone() -> int:
    """Rank 1 fails while rank 0 waits for it. NCCL would have it wait until rank 0 leaves, too."""
    import torch
    import torch.distributed as dist
    from rlhf_trainer import stages
    from rlhf_trainer.__main__ import end, main

    def train(session: Any) -> StageResult:
        if session.ranks.rank == 1:
            raise BadData("seen by one rank alone")
        session.ranks.max(torch.zeros(()))
        raise AssertionError("nobody came")

    stages.load = lambda _: train
    dist.destroy_process_group = lambda *_: os._exit(ASKED_TO_LEAVE)
    sys.exit = lambda _: os._exit(ASKED_TO_EXIT)  # type: ignore[assignment]
    end(main(["run", "config/stage.yaml"]))


def test_a_rank_that_fails_alone_ends_at_once_with_its_own_exit_code(pod: Pod) -> None:
    pod.write(pod.stage_run("sft", small_sft(pod)))
    started = ForkedRun(pod.directory, 2, free_port(), fail_alone)
    assert started.wait() == [ExitCode.TRANSIENT, ExitCode.CONFIGURATION], started.log
    assert "seen by one rank alone" in started.log
