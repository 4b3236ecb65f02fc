"""Which pods `rlhfctl logs` shows where the user names no stage, and how their lines are marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from builders import a_job
from rlhf_api.job import RLHFJob
from rlhf_api.status import StageStatus
from rlhf_api.validation import parse_job
from rlhf_cli.commands.logs import marked
from rlhf_cli.main import main
from rlhf_cli.selection import Wish, first_rank, selected
from rlhf_cli.targets.directory import Directory
from rlhf_cli.targets.target import PodView
from synthetic_run import MANIFEST, write_run

PODS = [PodView(f"tiny-{s}-1-0", s, 1, 0, "Succeeded") for s in ("prepare", "sft", "ppo")]

AT = "2026-01-06T10:00:00.123456789Z"  # of --timestamps
LOG = """\
Waiting for the other pods of the gang (of 2): 0
[rank 3] cuDNN is not there
[rank 3] NCCL WARN
[rank 2] reward: 0.5
rank 3 ended with -9
"""


def job_with(directory: Path, prepare: StageStatus) -> RLHFJob:
    job = write_run(directory)
    assert job.status
    status = job.status.model_copy(update={"prepare": prepare})
    return job.model_copy(update={"status": status})


@pytest.mark.parametrize(
    ("phase", "shown"), [("Succeeded", "ppo"), ("Failed", "prepare"), ("Running", "prepare")]
)
def test_a_preparation_that_was_made_again_hides_no_training(
    tmp_path: Path, phase: str, shown: str
) -> None:
    again = StageStatus.model_validate({"phase": phase, "startTime": "2026-01-06T10:00:00Z"})
    pods = selected(job_with(tmp_path, again), PODS, Wish())
    assert [pod.stage for pod in pods] == [shown]


def test_a_preparation_that_is_all_there_is_is_shown(tmp_path: Path) -> None:
    done = StageStatus.model_validate({"phase": "Succeeded", "startTime": "2026-01-06T10:00:00Z"})
    pods = selected(job_with(tmp_path, done), PODS[:1], Wish())
    assert [pod.stage for pod in pods] == ["prepare"]


@pytest.mark.parametrize(
    ("index", "line", "alone", "shown"),
    [
        (0, "step 1", False, "\x1b[36mppo-0 |\x1b[0m step 1"),
        (1, "step 1", False, "\x1b[34mppo-1 |\x1b[0m step 1"),
        (1, "[rank 5] NaN", False, "\x1b[96mppo-1 |\x1b[0m [rank 5] NaN"),
        (1, "[rank 5] NaN", True, "\x1b[96m[rank 5]\x1b[0m NaN"),
        (0, "[rank 0] step 1", True, "\x1b[36m[rank 0]\x1b[0m step 1"),
        (1, f"{AT} [rank 5] NaN", False, f"\x1b[96mppo-1 |\x1b[0m {AT} [rank 5] NaN"),
        (1, f"{AT} [rank 5] NaN", True, f"{AT} \x1b[96m[rank 5]\x1b[0m NaN"),
        (1, "step 1", True, "step 1"),
    ],
)
def test_each_rank_has_a_colour_of_its_own(index: int, line: str, alone: bool, shown: str) -> None:
    job = a_job().with_spec("resources", {"nodes": 2, "gpusPerNode": 4}).build()
    pod = PodView(f"tiny-ppo-1-{index}", "ppo", 1, index, "Running")
    assert marked(pod, line, first_rank(job, pod), True, alone=alone) == shown
    plain = line if alone else f"ppo-{index} | {line}"
    assert marked(pod, line, first_rank(job, pod), False, alone=alone) == plain


@pytest.mark.parametrize("follow", [[], ["-f"]])
@pytest.mark.parametrize(
    ("asked", "shown"),
    [(["--rank", "3"], [0, 1, 2, 4]), (["--rank", "3", "--tail", "2"], [2, 4]), ([], range(5))],
)
def test_a_rank_that_shares_a_pod_is_shown_without_the_others(
    follow: list[str],
    asked: list[str],
    shown: Sequence[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def pods(self: Directory, job: RLHFJob) -> list[PodView]:
        return [PodView("ppo-1-1", "ppo", 1, 1, "Failed")]

    resources = {"nodes": 2, "processesPerNode": 2}
    write_run(
        tmp_path, job=parse_job({**MANIFEST, "spec": MANIFEST["spec"] | {"resources": resources}})
    )
    (tmp_path / "pods" / "ppo-1-1").mkdir(parents=True)
    (tmp_path / "pods" / "ppo-1-1" / "log.txt").write_text(LOG)
    monkeypatch.setattr(Directory, "pods", pods)
    assert main(["logs", "--stage", "ppo", *asked, *follow, "--dir", str(tmp_path)]) == 0
    mark = "ppo-1 | " if follow else ""
    lines = [f"{mark}{line}" for line in LOG.splitlines()]
    assert capsys.readouterr().out.splitlines() == [lines[number] for number in shown]


@pytest.mark.parametrize("verb", ["events", "logs"])
def test_a_run_here_that_has_none_is_not_told_of_a_cluster(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    main([verb, "--dir", str(tmp_path)])
    said = capsys.readouterr().err
    assert "No events of quickstart." in said or "has no pods whose log could be shown" in said
    assert "cluster" not in said
    assert "ttlSecondsAfterFinished" not in said
