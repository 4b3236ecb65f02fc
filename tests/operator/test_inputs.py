"""What one machine makes of a job: its devices, its files, its pods' commands."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from builders import a_job
from rlhf_api.run import StageResult
from rlhf_operator.inputs import input_hash
from rlhf_operator.local.fingerprints import fingerprints
from rlhf_operator.local.kubelet import expanded, no_proxy, tail
from rlhf_operator.local.machine import fit_to_machine, smaller_here
from rlhf_operator.observed import parse_result


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [(0, (1, 0, 1)), (1, (1, 1, 1)), (2, (1, 2, 2)), (16, (1, 8, 8))],
)
def test_a_job_for_a_cluster_is_fitted_to_the_machine(
    gpus: int, expected: tuple[int, int, int]
) -> None:
    job = a_job().with_spec("resources", {"nodes": 4, "gpusPerNode": 8}).build()
    fitted = fit_to_machine(job, gpus, cpus=2).spec.resources
    assert (fitted.nodes, fitted.gpus_per_node, fitted.ranks_per_node) == expected


def test_a_stages_own_resources_are_fitted_too() -> None:
    job = a_job().with_spec("stages.ppo.resources", {"nodes": 8, "gpusPerNode": 8}).build()
    fitted = fit_to_machine(job, gpus=2, cpus=2).spec
    assert fitted.stages.ppo is not None
    asked = fitted.resources.overridden_by(fitted.stages.ppo.resources)
    assert (asked.nodes, asked.gpus_per_node) == (1, 2)


def test_processes_on_the_cpu_are_no_more_than_cores() -> None:
    job = a_job().with_spec("resources", {"processesPerNode": 8}).build()
    assert fit_to_machine(job, gpus=0, cpus=2).spec.resources.processes_per_node == 2


def test_what_a_stage_has_less_of_here_is_told() -> None:
    job = a_job().with_spec("resources", {"nodes": 4, "gpusPerNode": 8})
    job = job.with_spec("stages.reward.resources", {"nodes": 1, "gpusPerNode": 1})
    told = list(smaller_here(job.build(), fit_to_machine(job.build(), gpus=0, cpus=2)))
    assert told == [
        "sft, ppo, dpo: 4 nodes of 8 GPUs are asked for; here it is 1 process on the CPU",
        "reward: 1 node of 1 GPU is asked for; here it is 1 process on the CPU",
    ]
    alone = a_job().with_spec("resources", {"processesPerNode": 2}).build()
    assert not list(smaller_here(alone, fit_to_machine(alone, gpus=0, cpus=2)))


def test_fitting_changes_no_identity() -> None:
    job = a_job().with_spec("resources", {"nodes": 4, "gpusPerNode": 8}).build()
    outputs = {"sft": "sha256:sft", "reward": "sha256:reward"}
    fitted = fit_to_machine(job, gpus=0, cpus=2)
    for stage in job.spec.stages.present():
        assert input_hash(job, stage, {}, outputs) == input_hash(fitted, stage, {}, outputs)


def test_a_fingerprint_follows_files_and_not_caches(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_text("one")
    job = a_job().with_spec("stages.sft.data.source", str(folder)).build()

    def seen() -> str:
        return fingerprints(job.spec, tmp_path / "volumes", folder / "run")[str(folder)]

    before = seen()
    (folder / ".hidden").write_text("x")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.pyc").write_text("x")
    (folder / "run").mkdir()
    (folder / "run" / "status.yaml").write_text("x")
    assert seen() == before
    (folder / "a.jsonl").write_text("two!")
    assert seen() != before
    (folder / "a.jsonl").write_text("one")
    os.utime(folder / "a.jsonl", (1, 1))
    (folder / "b.jsonl").write_text("")
    assert seen() != before


def test_a_missing_path_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    job = a_job().with_spec("model.source", str(tmp_path / "nowhere")).build()
    found = fingerprints(job.spec, tmp_path / "volumes", tmp_path / "run")
    assert found[str(tmp_path / "nowhere")] == "absent"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)", "1"),
        ("x$(A)y$(B)", "x1y2"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$$(A)", "$(A)"),
        ("$A", "$A"),
    ],
)
def test_variables_are_expanded_as_kubernetes_does(text: str, expected: str) -> None:
    assert expanded(text, {"A": "1", "B": "2"}) == expected


def test_reports_bypass_a_proxy_and_its_exceptions_stay() -> None:
    assert no_proxy({"NO_PROXY": "example.org"})["NO_PROXY"] == "example.org,127.0.0.1,localhost"


def test_the_tail_of_a_log_is_its_last_80_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("\n".join(str(number) for number in range(500)))
    assert tail(log).splitlines() == [str(number) for number in range(420, 500)]
    assert tail(tmp_path / "none") == ""


@pytest.mark.parametrize("text", ["", "Traceback …", "[]", '{"exitCode": "0", "reason": "Done"}'])
def test_what_is_no_termination_message_is_no_result(text: str) -> None:
    assert parse_result(text) is None


def test_a_metric_that_is_no_number_takes_no_result_along() -> None:
    result = parse_result(
        '{"exitCode": 0, "reason": "Done", "metrics": {"eval/loss": NaN, "x": -Infinity, "y": 1}}'
    )
    assert result is not None
    assert result.metrics == {"y": 1.0}
    made = StageResult(exit_code=0, reason="Done", metrics={"eval/loss": math.nan, "y": 1.0})
    assert made.metrics == {"y": 1.0}


def test_a_termination_message_is_a_result() -> None:
    result = parse_result('{"exitCode": 66, "reason": "Diverged", "step": 7}')
    assert result is not None
    assert (result.exit_code, result.reason, result.step) == (66, "Diverged", 7)


def test_a_result_of_any_image_gives_the_status_words_it_can_hold() -> None:
    """Else the status could not be written, or a terminal would obey it."""
    told = {"\x1b[2Jloss": 1.0, "n" * 5000: 2.0, "eval loss 损失": 3.0}
    said = {"exitCode": 1, "reason": "Bad\x1b]0;x\x07 " * 90, "metrics": told}
    result = parse_result(json.dumps(said))
    assert result is not None
    assert result.reason == ("Bad0x" * 90)[:128]
    assert result.metrics == {"[2Jloss": 1.0, "n" * 128: 2.0, "eval loss 损失": 3.0}
    nothing = parse_result('{"exitCode": 1, "reason": "坏"}')
    assert nothing is not None
    assert nothing.reason == "Error"
