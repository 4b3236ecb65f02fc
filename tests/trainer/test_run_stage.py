"""What a rank leaves behind: the termination message, and the exit code."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rlhf_api.run import TERMINATION_LIMIT, TERMINATION_LOG, ExitCode, StageResult
from rlhf_trainer import run_stage as running
from rlhf_trainer import session as sessions
from rlhf_trainer.errors import BadData
from rlhf_trainer.run_stage import failure, run_stage, write_termination_message


def left(result: StageResult) -> StageResult:
    write_termination_message(result)
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
    monkeypatch.setattr(running, "read_stage_file", lambda _: None)
    assert run_stage("config/stage.yaml") == ExitCode.TRANSIENT
    found = StageResult.model_validate_json(Path(TERMINATION_LOG).read_bytes())
    assert "No space left on device" in found.message
    assert "Traceback" not in capsys.readouterr().err


def test_what_cannot_be_closed_holds_nothing_else_open() -> None:
    closed: list[str] = []

    def part(name: str) -> Any:
        return SimpleNamespace(close=lambda: closed.append(name))

    def full() -> None:
        raise OSError(28, "No space left on device")

    session: Any = SimpleNamespace(
        telemetry=SimpleNamespace(close=full),
        checkpointer=SimpleNamespace(disk=part("disk")),
        ranks=SimpleNamespace(stop=lambda: closed.append("ranks")),
        _made={"first": part("first"), "second": part("second")},
    )
    with pytest.raises(OSError, match="No space left"):
        sessions.Session.close(session)
    assert closed == ["first", "second", "disk", "ranks"]
