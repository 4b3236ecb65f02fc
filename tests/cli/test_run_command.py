"""rlhfctl run and chat around the operator and the trainer: what is said, and the exit code."""

from __future__ import annotations

import argparse
import copy
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import yaml
from rich.console import Console
from rlhf_api.job import RLHFJob
from rlhf_api.run import StageResult
from rlhf_api.status import AttemptEnd, StageStatus
from rlhf_api.validation import parse_job
from rlhf_cli.commands.run import again
from rlhf_cli.failures import Failure, Terminated
from rlhf_cli.main import main
from rlhf_cli.models import base_model, stage_with_model
from rlhf_cli.run_folder import RunFolder
from rlhf_operator import local
from synthetic_run import MANIFEST, write_run

Outcome = Callable[..., RLHFJob]
FAILED = StageStatus(phase="Failed", attempt=1, reason="Diverged", message="ppo/kl is nan at 31.")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The command line owns the signals of its process; here the process is the tests'."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A manifest whose local paths are there."""
    obj: dict[str, Any] = copy.deepcopy(MANIFEST)
    text = yaml.safe_dump(obj).replace("/data", str(tmp_path))
    (tmp_path / "base-model").mkdir()
    for name in ("sft.jsonl", "pairs.jsonl", "prompts.jsonl", "heldout.jsonl"):
        (tmp_path / name).touch()
    file = tmp_path / "job.yaml"
    file.write_text(text)
    return file


@pytest.fixture
def run(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Outcome], int]:
    """`rlhfctl run` with the given end in place of the operator."""

    def start(outcome: Outcome) -> int:
        def stand_in(job: RLHFJob, directory: Path, *, on_change: Any, **_: Any) -> RLHFJob:
            on_change(job)
            return outcome(directory)

        monkeypatch.setattr(local, "run", stand_in)
        return main(["run", str(manifest), "--dir", str(tmp_path / "run")])

    return start


def test_a_run_that_succeeds_ends_with_0_a_table_and_a_report(
    run: Callable[[Outcome], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write_run) == 0
    told = capsys.readouterr().out
    assert "held-out accuracy 0.953" in told
    assert f"Report: {tmp_path / 'run/report.html'}" in told
    assert (tmp_path / "run/report.html").is_file()
    assert "torch" in (tmp_path / "run/report.html").read_text()


def test_a_job_that_asks_for_more_than_is_here_says_so_and_runs_on_what_was_looked_at(
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machines = []

    def stand_in(job: RLHFJob, directory: Path, *, machine: Any, **_: Any) -> RLHFJob:
        machines.append(machine)
        return write_run(directory)

    here = local.Machine(cpus=2)
    monkeypatch.setattr(local, "this_machine", lambda: here)
    monkeypatch.setattr(local, "run", stand_in)
    asked = ["--set", "spec.resources.nodes=2"]
    assert main(["run", str(manifest), "--dir", str(tmp_path / "run"), *asked]) == 0
    assert "are asked for; here it is 1 process on the CPU" in capsys.readouterr().err
    assert machines == [here]


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    run: Callable[[Outcome], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def console(stream: TextIO) -> Console:
        return Console(file=stream, force_terminal=True)

    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("rlhf_cli.running.console_for", console)
    assert run(write_run) == 0
    assert re.search(r"^\d\d:\d\d:\d\d  PPO +succeeded", capsys.readouterr().err, re.MULTILINE)


def test_a_report_that_cannot_be_written_does_not_fail_a_run_that_succeeded(
    run: Callable[[Outcome], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run/report.html").mkdir(parents=True)
    assert run(write_run) == 0
    told = capsys.readouterr()
    assert "report.html is a folder" in told.err
    assert "Talk to the model" in told.out


def test_a_run_that_is_refused_leaves_the_versions_of_the_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: Path
) -> None:
    def refuse(job: RLHFJob, directory: Path, **of_no_use: Any) -> RLHFJob:
        raise local.LocalRunError("Another run is using it.")

    file = tmp_path / "run/versions.json"
    file.parent.mkdir()
    file.write_text("as it was")
    monkeypatch.setattr(local, "run", refuse)
    assert main(["run", str(manifest), "--dir", str(file.parent)]) == 64
    assert file.read_text() == "as it was"


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (64, "Correct the manifest or the data, then run the same command again."),
        (65, "A checkpoint is damaged or does not fit; see the message for which one."),
        (
            66,
            "Where it names a reward, mend its function or endpoint; else a lower learningRate, "
            "more warm-up or (PPO) a larger kl.coef may help.",
        ),
        (75, "This may pass: run the same command again."),
        (137, "Killed, most likely for memory: a lower microBatchSize needs less."),
    ],
)
def test_a_failed_stage_gives_its_exit_code_reason_last_lines_and_what_to_do(
    run: Callable[[Outcome], int], capsys: pytest.CaptureFixture[str], code: int, advice: str
) -> None:
    end = AttemptEnd(
        attempt=1, kind="Fault", exit_code=code, reason="Diverged", time="2026-01-05T10:00:00Z"
    )

    def fail(directory: Path) -> RLHFJob:
        pod = directory / "pods" / "quickstart-ppo-1-0"
        pod.mkdir(parents=True)
        (pod / "log.txt").write_text("".join(f"line {n}\n" for n in range(40)))
        return write_run(directory, ppo=FAILED.model_copy(update={"ended": end}))

    assert run(fail) == code
    told = capsys.readouterr().err
    assert f"PPO failed: Diverged (exit code {code})" in told
    assert "ppo/kl is nan at 31." in told
    assert "pods/quickstart-ppo-1-0/log.txt" in told
    assert "| line 39" in told
    assert "  | line 24\n" not in told  # fifteen lines of the log, no more
    assert told.splitlines()[-2:] == [
        advice, "Finished stages are kept: the same command goes on after them."
    ]  # fmt: skip


def test_the_exit_code_is_read_from_the_pods_where_the_status_has_none(
    run: Callable[[Outcome], int],
) -> None:
    def fail(directory: Path) -> RLHFJob:
        result = StageResult(exit_code=75, reason="Transient")
        pod = directory / "pods" / "quickstart-ppo-1-0" / "termination"
        pod.mkdir(parents=True)
        (pod / "message.json").write_text(result.model_dump_json(by_alias=True))
        return write_run(directory, ppo=FAILED.model_copy(update={"reason": "Odd"}))

    assert run(fail) == 75


def test_a_stage_that_waits_for_a_person_is_named_and_ends_with_1(
    run: Callable[[Outcome], int], capsys: pytest.CaptureFixture[str]
) -> None:
    def wait(directory: Path) -> RLHFJob:
        waiting = StageStatus(phase="Waiting", reason="Gate", message="waits for approval.")
        job = write_run(directory, ppo=waiting)
        assert job.status
        return job.model_copy(update={"status": job.status.model_copy(update={"phase": "Pending"})})

    assert run(wait) == 1
    assert "PPO: Waiting, waits for approval." in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_a_stopped_run_says_how_to_go_on(
    run: Callable[[Outcome], int],
    capsys: pytest.CaptureFixture[str],
    manifest: Path,
    error: type[BaseException],
    code: int,
) -> None:
    def stop(directory: Path) -> RLHFJob:
        raise error

    assert run(stop) == code
    assert f"rlhfctl run {manifest} --dir" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_any_command_that_is_stopped_ends_with_the_code_that_says_so(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException], code: int
) -> None:
    def stop(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr("rlhf_cli.commands.schema.execute", stop)
    assert main(["schema"]) == code


def test_what_the_user_can_mend_is_said_without_a_traceback(
    run: Callable[[Outcome], int], capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(directory: Path) -> RLHFJob:
        raise local.LocalRunError("Another run is using it.")

    assert run(refuse) == 64
    assert capsys.readouterr().err.endswith("rlhfctl: Another run is using it.\n")


@pytest.mark.parametrize("file", ["/x/status.yaml", None])
def test_a_full_disk_is_said_with_its_place_and_how_to_go_on(
    run: Callable[[Outcome], int], file: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    places = []

    def full(directory: Path) -> RLHFJob:
        places.append(directory)
        raise OSError(28, "No space left on device", file)

    assert run(full) == 74
    said, hint = capsys.readouterr().err.splitlines()[-2:]
    assert said == f"rlhfctl: {file or places[0]}: No space left on device"
    assert hint.startswith("once that is mended, go on where it stopped: rlhfctl run ")


def test_a_run_that_nobody_listens_to_any_more_goes_on_to_its_end(manifest: Path) -> None:
    program = (
        "import sys; from rlhf_cli.main import main; from rlhf_operator import local\n"
        "from synthetic_run import write_run\n"
        "def run(job, directory, *, on_change, **_):\n"
        "    made = write_run(directory)\n"
        "    on_change(made)\n"
        "    return made\n"
        "local.run = run; sys.exit(main(sys.argv[1:]))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    run = manifest.parent / "run"
    done = subprocess.run(
        [sys.executable, "-c", program, "run", str(manifest), "--dir", str(run)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=writer,
        stderr=writer,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 0
    assert (run / "report.html").is_file()


def test_the_command_that_goes_on_keeps_every_flag() -> None:
    args = argparse.Namespace(file="my job.yaml", dir="out", set=["spec.seed=3"])
    assert again(args) == "rlhfctl run 'my job.yaml' --dir out --set spec.seed=3"


def test_chat_takes_the_newest_policy_unless_a_stage_is_named(tmp_path: Path) -> None:
    job = write_run(tmp_path)
    for stage, name in [(None, "ppo-2b"), ("sft", "sft-0b"), ("dpo", "dpo-3b")]:
        assert name in stage_with_model(job, stage, "here")[1].uri


def test_chat_says_which_models_are_there(tmp_path: Path) -> None:
    job = write_run(tmp_path, ppo=FAILED, dpo=StageStatus())
    assert "sft-0b" in stage_with_model(job, None, "here")[1].uri
    with pytest.raises(Failure, match="no model of the stage ppo; there are: sft"):
        stage_with_model(job, "ppo", "here")
    with pytest.raises(Failure, match="random weights"):
        base_model(RunFolder(tmp_path), job)


def test_a_chat_ends_answers_with_the_texts_of_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = copy.deepcopy(MANIFEST)
    manifest["spec"]["evaluation"]["stop"] = ["</answer>", "-"]
    write_run(tmp_path, job=parse_job(manifest))
    started: list[list[str]] = []
    monkeypatch.setattr(subprocess, "call", lambda command: started.append(command) or 0)
    assert main(["chat", str(tmp_path), "--stage", "sft"]) == 0
    assert started[0][-2:] == ["--stop=</answer>", "--stop=-"]
