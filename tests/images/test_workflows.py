"""The workflows of a public forge: few rights, pinned actions, and the Makefile's own targets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
FILES = sorted((REPOSITORY / ".github/workflows").glob("*.yaml"))
Job = dict[str, Any]

RIGHTS = {
    "build": {"contents": "read", "packages": "write"},
    "publish": {"contents": "read", "packages": "write", "id-token": "write"},
}
"""Of the jobs that need more than to read the code."""

each = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def workflow(file: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(file.read_text())
    return found


def steps(file: Path) -> list[Job]:
    return [step for job in workflow(file)["jobs"].values() for step in job["steps"]]


def test_there_is_one_for_changes_and_one_for_releases() -> None:
    assert [file.stem for file in FILES] == ["ci", "release"]


@each
def test_rights_are_to_read_the_code_but_where_a_job_says_more(file: Path) -> None:
    assert workflow(file)["permissions"] == {"contents": "read"}
    for name, job in workflow(file)["jobs"].items():
        assert job.get("permissions") == RIGHTS.get(name), name
        assert job["timeout-minutes"] <= 90


@each
def test_actions_are_pinned_to_commits_that_are_whole_versions(file: Path) -> None:
    """Whoever takes an action's repository over can move its tags, and not its commits."""
    used = re.findall(r"uses: (.+)", file.read_text())
    assert len(used) == sum("uses" in step for step in steps(file)) > 0
    for line in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    for step in steps(file):
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False


@each
def test_no_expression_is_pasted_into_a_shell(file: Path) -> None:
    """What others can name, a branch or a tag, would run there: it comes by the environment."""
    assert not [step["run"] for step in steps(file) if "${{" in step.get("run", "")]


@each
def test_what_runs_is_what_people_run(file: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    called = {
        target.strip('"').replace("$IMAGE", image)
        for step in steps(file)
        for target in re.findall(r"\bmake (\S+)", step.get("run", ""))
        for image in ("operator", "trainer")
    }
    assert {"check", "test"} < called <= targets


def test_a_release_waits_for_its_tests() -> None:
    jobs = workflow(FILES[1])["jobs"]
    assert jobs["build"]["needs"] == "test"
    assert jobs["publish"]["needs"] == "build"
