"""Local paths are relative to the manifest; addresses are left as they are."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from rlhf_api.validation import parse_job
from rlhf_cli.locations import missing_paths, resolved
from synthetic_run import MANIFEST


def job(**sources: str) -> Any:
    obj = copy.deepcopy(MANIFEST)
    obj["spec"]["model"] = {"source": sources.get("model", "base"), "tokenizer": "tokenizer"}
    obj["spec"]["stages"] = {
        "sft": {"data": {"source": "../sft.jsonl", "evalSource": "held/out.jsonl"}},
        "ppo": {
            "data": {"source": "pvc://claim/prompts.jsonl"},
            "rewards": {
                "rule": {"function": {"entrypoint": "a:b", "source": sources.get("code", ".")}}
            },
        },
    }
    obj["spec"].pop("evaluation")
    return parse_job(obj)


def test_every_local_path_becomes_absolute(tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    spec = resolved(job(), folder).spec
    assert spec.model.source == str(folder / "base")
    assert spec.model.tokenizer == str(folder / "tokenizer")
    assert spec.stages.sft.data.source == str(tmp_path / "sft.jsonl")
    assert spec.stages.sft.data.eval_source == str(folder / "held/out.jsonl")
    assert spec.stages.ppo.rewards["rule"].function.source == str(folder)
    assert spec.stages.ppo.data.source == "pvc://claim/prompts.jsonl"


def test_a_job_that_is_resolved_stays_as_it_is(tmp_path: Path) -> None:
    once = resolved(job(), tmp_path)
    assert resolved(once, Path("/elsewhere")) == once


def test_local_paths_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "tokenizer").mkdir()
    missing = list(missing_paths(resolved(job(), tmp_path)))
    assert [problem.path for problem in missing] == ["spec.stages.sft.data"] * 2
    assert "hf://OWNER/NAME" in missing[0].allowed


def test_a_file_where_a_folder_is_read_is_named(tmp_path: Path) -> None:
    for name in ("base", "code.py"):
        (tmp_path / name).touch()
    problems = missing_paths(resolved(job(code="code.py"), tmp_path))
    found = [problem for problem in problems if "is a file" in problem.message]
    assert [problem.path for problem in found] == [
        "spec.model",
        "spec.stages.ppo.rewards.rule.function",
    ]
    assert all(problem.allowed.startswith("a folder, relative") for problem in found)


def test_what_is_not_local_is_not_looked_for(tmp_path: Path) -> None:
    problems = missing_paths(resolved(job(model="hf://owner/name"), tmp_path))
    assert "spec.model" in {problem.path for problem in problems}  # its tokenizer is local
    assert not any("hf://owner" in problem.message for problem in problems)
