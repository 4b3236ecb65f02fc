"""Which pods `rlhfctl logs` shows where the user names no stage."""

from __future__ import annotations

from pathlib import Path

import pytest
from rlhf_api.job import RLHFJob
from rlhf_api.status import StageStatus
from rlhf_cli.selection import Wish, selected
from rlhf_cli.targets.target import PodView
from synthetic_run import write_run

PODS = [PodView(f"tiny-{s}-1-0", s, 1, 0, "Succeeded") for s in ("prepare", "sft", "ppo")]


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
