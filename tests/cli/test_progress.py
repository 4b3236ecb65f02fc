"""What a run shows while it goes on."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console
from rlhf_api.job import RLHFJob
from rlhf_api.status import AttemptEnd, Condition, GPUSeconds, JobStatus, StageStatus
from rlhf_api.validation import parse_job
from rlhf_cli.description import _pods
from rlhf_cli.figures import duration, figure_text, key_figures
from rlhf_cli.progress.history import from_log, sparkline
from rlhf_cli.progress.lines import LineProgress
from rlhf_cli.progress.logs import LogFollower
from rlhf_cli.progress.rows import stage_rows
from rlhf_cli.progress.summary import print_summary
from rlhf_cli.progress.terminal import TerminalProgress, stage_table
from rlhf_cli.targets.target import PodView
from rlhf_operator.pausing import DELETING, INTERRUPTED, SUSPENDED
from synthetic_run import FINAL, MANIFEST

NOW = datetime(2026, 1, 5, 10, 1, 0, tzinfo=UTC)
JOB = parse_job(MANIFEST)


def job(**stages: StageStatus) -> RLHFJob:
    done = StageStatus(
        phase="Succeeded", attempt=1,
        start_time="2026-01-05T09:59:00Z", completion_time="2026-01-05T10:00:00Z",
    )  # fmt: skip
    return JOB.model_copy(update={"status": JobStatus(prepare=done, stages=stages)})


RUNNING = StageStatus(
    phase="Running",
    attempt=2,
    start_time="2026-01-05T10:00:00Z",
    progress_percent=25.0,
    remaining_seconds=180.0,
    metrics={"train/loss": 2.3456},
)
WAITING = StageStatus(phase="Waiting", reason="Waiting", message="Waits for sft.")


def drawn(shown: RLHFJob, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(stage_table(stage_rows(shown, NOW), width))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_running_stage_shows_bar_share_times_and_loss() -> None:
    line = drawn(job(sft=RUNNING, reward=WAITING), 100)[1]
    assert line.startswith("▸ SFT")
    assert "━" in line
    assert " 25 % 1:00, 3:00 left loss 2.346" in line


@pytest.mark.parametrize("width", [20, 40, 60, 79, 80, 200])
def test_each_stage_is_one_line_however_narrow_the_terminal(width: int) -> None:
    failed = StageStatus(phase="Failed", reason="BadData", message="long " * 40)
    lines = drawn(job(sft=RUNNING, reward=failed, ppo=WAITING, dpo=WAITING), width)
    assert len(lines) == 5
    assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize(
    ("reason", "message", "note"),
    [
        (*INTERRUPTED, "stopped"),
        (*SUSPENDED, SUSPENDED.message),
        (DELETING, "It was deleted, and goes once …", "It was deleted, and goes once …"),
    ],
)
def test_a_stage_that_stands_still_says_by_whose_wish(reason: str, message: str, note: str) -> None:
    paused = StageStatus(phase="Suspended", reason=reason, message=message)
    assert stage_rows(job(sft=paused), NOW)[1].note == note


def test_live_progress_ends_with_the_last_status() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=True)
    with TerminalProgress(console) as progress:
        progress.show(job(sft=RUNNING))
        progress.say("a line of a log")
        progress.show(job(sft=RUNNING.model_copy(update={"phase": "Succeeded"})))
    assert "a line of a log" in stream.getvalue()
    assert "✓" in stream.getvalue().rsplit("SFT", 1)[0][-20:]


def test_a_log_has_a_line_for_each_change_and_one_every_ten_seconds() -> None:
    stream, time = io.StringIO(), [0.0]
    progress = LineProgress(stream, clock=lambda: time[0])
    for seconds in range(26):
        time[0] = float(seconds)
        progress.show(job(sft=RUNNING, reward=WAITING))
    progress.show(job(sft=RUNNING.model_copy(update={"phase": "Succeeded"}), reward=WAITING))
    lines = [line[10:] for line in stream.getvalue().splitlines()]
    sft = [line for line in lines if line.startswith("SFT")]
    assert len(sft) == 4  # running, after 10 s, after 20 s, succeeded
    assert "running, attempt 2" in sft[0]
    assert "25 %" in sft[1]
    assert "succeeded" in sft[3]
    assert len([line for line in lines if line.startswith("Reward")]) == 1


def test_a_stage_that_is_pending_says_so_only_when_it_stays_so() -> None:
    stream, time = io.StringIO(), [0.0]
    progress = LineProgress(stream, clock=lambda: time[0])
    pending = StageStatus(phase="Pending", attempt=1, message="1 of 1 pods wait for a node.")
    progress.show(job(sft=pending))
    time[0] = 1.9
    progress.show(job(sft=pending))
    assert "SFT" not in stream.getvalue()
    time[0] = 2.1
    progress.show(job(sft=pending))
    assert stream.getvalue().count("wait for a node") == 1


def test_the_table_at_the_end_has_times_figures_and_scores() -> None:
    stages = {
        name: StageStatus(
            phase="Succeeded", attempt=1, metrics=FINAL[name],
            start_time="2026-01-05T10:00:00Z", completion_time="2026-01-05T11:02:03Z",
        )
        for name in FINAL
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=120)
    print_summary(console, job(**stages), NOW)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "1:02:03" in text
    assert "held-out accuracy 0.953" in text
    assert "KL 6.300" in text  # of PPO
    assert "KL 1.370" in text  # of DPO
    assert "Base 0.000   SFT 0.310   PPO 0.870   DPO 0.790" in text


def summary(shown: RLHFJob, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_summary(console, shown, NOW)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_the_table_at_the_end_tells_every_figure_however_narrow_the_terminal(width: int) -> None:
    done = {
        name: StageStatus(phase="Succeeded", attempt=12, metrics=FINAL[name],
                          start_time="2026-01-05T10:00:00Z", completion_time="2026-01-05T11:02:03Z")
        for name in FINAL
    }  # fmt: skip
    text = summary(job(**done), width)
    for told in ("Succeeded", "1:02:03", "held-out accuracy 0.953", "reward 2.410", "score 0.870"):
        assert told in text


def test_the_table_at_the_end_says_why_a_stage_failed_that_had_figures_by_then() -> None:
    failed = StageStatus(
        phase="Failed", reason="Diverged", message="KL at step 9", metrics=FINAL["ppo"]
    )
    assert "Diverged: KL at step 9" in summary(job(ppo=failed), 120)


def test_scores_at_the_end_come_in_the_order_of_the_stages() -> None:
    done = {name: StageStatus(phase="Succeeded", metrics=FINAL[name]) for name in sorted(FINAL)}
    assert "Base 0.000   SFT 0.310   PPO 0.870   DPO 0.790" in summary(job(**done), 120)


def test_the_table_is_followed_by_device_time_and_what_is_waited_for() -> None:
    spent = GPUSeconds(useful=7200, repeated=65, waiting=10)
    shown = job(sft=RUNNING.model_copy(update={"gpu_seconds": spent}))
    waits = Condition(
        type="Scheduled",
        status="False",
        reason="Unschedulable",
        message="sft: 2 of 4 pods fit: insufficient nvidia.com/gpu.",
        last_transition_time="2026-01-05T10:00:00Z",
    )
    assert shown.status is not None
    status = shown.status.model_copy(update={"conditions": [waits]})
    console = Console(file=io.StringIO(), width=120)
    print_summary(console, shown.model_copy(update={"status": status}), NOW)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines()[-2:] == [
        "Device time:   useful 2:00:00   repeated 1:05   waiting 0:10",
        "Scheduled: sft: 2 of 4 pods fit: insufficient nvidia.com/gpu.",
    ]


def test_what_prepare_warns_of_is_told_once_and_again_at_the_end() -> None:
    stream, shown = io.StringIO(), job(sft=RUNNING)
    assert shown.status is not None
    end = AttemptEnd(
        attempt=1, kind="Done", reason="Done", exit_code=0, time="2026-01-05T10:00:00Z",
        message="checked 1 sources: …\nspec.stages.sft.data: [a] {{name}}\nspec.model: b",
    )  # fmt: skip
    prepare = shown.status.prepare.model_copy(update={"ended": end})
    shown = shown.model_copy(update={"status": JobStatus(prepare=prepare, stages={"sft": RUNNING})})
    warnings = ["Warning: spec.stages.sft.data: [a] {{name}}", "Warning: spec.model: b"]
    lines = LineProgress(stream)
    live = TerminalProgress(Console(file=io.StringIO(), width=100))
    for _ in range(3):
        lines.show(shown)
        live.show(shown)
    for said in (stream, live.console.file):
        assert isinstance(said, io.StringIO)
        told = (line for line in said.getvalue().splitlines() if "Warning" in line)
        assert [line[line.index("Warning") :] for line in told] == warnings
    assert summary(shown, 60).splitlines()[-2:] == warnings
    again = prepare.model_copy(update={"phase": "Running", "attempt": 2})
    shown = shown.model_copy(update={"status": JobStatus(prepare=again)})
    assert "Warning" not in summary(shown, 60)


def test_text_from_a_trainer_is_never_taken_for_markup() -> None:
    failed = StageStatus(phase="Failed", reason="BadData", message="[/red] and [bold] are text")
    assert "[/red] and [bold] are text" in "\n".join(drawn(job(sft=failed), 120))


def test_a_log_is_followed_by_whole_lines_from_now_on(tmp_path: object) -> None:
    from pathlib import Path

    pods = Path(str(tmp_path))
    log = pods / "job-sft-1-0" / "log.txt"
    log.parent.mkdir()
    log.write_text("old\n")
    said: list[str] = []
    follower = LogFollower(pods, said.append)
    with log.open("a") as stream:
        stream.write("new\nhalf")
    follower.read_new()
    assert said == ["job-sft-1-0 | new"]
    with log.open("a") as stream:
        stream.write(" done\n\n")
    follower.read_new()
    assert said[1:] == ["job-sft-1-0 | half done", "job-sft-1-0 | "]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.000"), (0.12345, "0.123"), (12.345, "12.35"), (123.45, "123.5"), (12345.6, "12,346"),
     (-0.5, "-0.500"), (1e-5, "1.00e-05"), (1e9, "1.00e+09")],
)  # fmt: skip
def test_a_figure_has_about_three_digits(value: float, text: str) -> None:
    assert figure_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (-1, "0:00")],
)
def test_a_duration_reads_as_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_training_figure_gives_way_to_the_held_out_one() -> None:
    assert key_figures("sft", {"train/loss": 1.0}) == [("loss", "1.000")]
    both = {"train/loss": 1.0, "eval/loss": 2.0}
    assert key_figures("sft", both) == [("held-out loss", "2.000")]
    assert dict(key_figures("sft", both, is_final=False)) == {
        "held-out loss": "2.000", "loss": "1.000",
    }  # fmt: skip


def test_figures_are_read_from_the_log_of_a_pod_with_several_ranks() -> None:
    lines = ["[rank 0] sft  step 3/9  loss 2.5", "[rank 1] sft  step 3/9  loss 7", "rank 1 ended"]
    assert from_log(lines) == {"train/loss": {3.0: 2.5}}


def test_a_figure_in_a_log_that_is_not_finite_has_no_bar() -> None:
    lines = [f"sft  step {step}/9  loss {loss}" for step, loss in ((1, 4), (2, "nan"), (3, "inf"))]
    lines += ["sft  step 4/9  loss 1  lr 1e-04", f"sft  step {'9' * 400}/9  loss 7"]
    found = from_log(lines)["train/loss"]
    assert found == {1.0: 4.0, 4.0: 1.0}
    assert sparkline(list(found.values()), 8) == "█▁"


def test_of_hundreds_of_pods_those_that_are_alike_share_a_line() -> None:
    pods = [PodView(f"ppo-1-{n}", "ppo", 1, n, "Running", f"node-{n}") for n in range(512)]
    pods[70] = pods[70]._replace(phase="Pending", node="", reason="ImagePullBackOff")
    lines = [" ".join(line.plain.split()) for line in _pods(pods)[1:]]
    assert lines == ["ppo-1-0 and 510 more Running", "ppo-1-70 Pending ImagePullBackOff"]
    few = [" ".join(line.plain.split()) for line in _pods(pods[:2])[1:]]
    assert few == ["ppo-1-0 Running node-0", "ppo-1-1 Running node-1"]
