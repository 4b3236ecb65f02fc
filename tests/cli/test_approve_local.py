"""rlhfctl approve --dir: the gate of a run on this machine."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rlhf_api.job import RLHFJob
from rlhf_cli.main import main
from rlhf_cli.post_mortem import explain
from rlhf_cli.run_folder import RunFolder
from rlhf_operator.local.store import Store
from test_local import IMAGE, Bench, status_of


@pytest.fixture
def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A run that has come up to the gate of its reward model."""
    made = Bench(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(IMAGE), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_BEHAVIOUR", str(made.behaviour))
    before = signal.getsignal(signal.SIGTERM)
    made.run(job(made))
    yield made
    signal.signal(signal.SIGTERM, before)


def job(bench: Bench, **reward: object) -> RLHFJob:
    return bench.job(reward={"gate": {"approval": True}, **reward})


def approve(bench: Bench, stage: str = "reward") -> int:
    return main(["approve", stage, "--dir", str(bench.directory)])


def test_an_approved_run_goes_on_behind_its_gate(
    gated: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "ppo" not in gated.stages()
    assert approve(gated) == 0
    said = capsys.readouterr().out
    assert "Approved: ppo may start." in said
    assert f"rlhfctl resume --dir {gated.directory}" in said
    before = len(gated.stages())
    assert status_of(gated.run(job(gated)))["ppo"] == ("Succeeded", 1)
    assert gated.stages()[before:] == ["ppo"]
    assert approve(gated) == 0
    assert "It is approved already." in capsys.readouterr().out


def test_a_later_result_waits_again(gated: Bench) -> None:
    assert approve(gated) == 0
    gated.run(job(gated))
    again = gated.run(job(gated, epochs=3.0))
    assert status_of(again)["ppo"] == ("Waiting", 1)


def test_a_run_that_waits_says_in_its_status_how_it_goes_on(gated: Bench) -> None:
    folder = RunFolder(gated.directory)
    lines, _ = explain(folder.job(), folder)
    assert "kubectl" not in (gated.directory / "status.yaml").read_text()
    _, command = lines[-1].split("waits for a person: rlhfctl ")
    assert main(shlex.split(command)) == 0
    assert status_of(gated.run(job(gated)))["ppo"] == ("Succeeded", 1)


def test_a_run_that_is_in_use_is_left_alone(
    gated: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    running = Store(gated.directory, job(gated), lambda job: None)
    try:
        assert approve(gated) == 75
    finally:
        running.close()
    assert "Another run is using" in capsys.readouterr().err


def test_no_run_and_no_job_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main(["approve", "reward", "--dir", str(tmp_path)]) == 64
    assert "holds no run" in capsys.readouterr().err
    for words, told in (
        (["reward"], "rlhfctl approve JOB STAGE"),
        (["tiny", "reward", "--dir", str(tmp_path)], "leave out tiny or --dir"),
    ):
        assert main(["approve", *words]) == 64
        assert told in capsys.readouterr().err
    signal.signal(signal.SIGTERM, before)
