"""What is made from others is up to date, and Helm finds nothing wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from chart import CHART, REPOSITORY, Helm

GENERATE = [sys.executable, REPOSITORY / "charts" / "generate"]


def test_schema_table_copies_and_kustomize_are_as_generated(
    program: Callable[[str], Path],
) -> None:
    environment = os.environ | {"HELM": str(program("helm"))}
    words = [*GENERATE, "--check"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_helm_it_says_what_to_do() -> None:
    words = [*GENERATE, "--check"]
    done = subprocess.run(words, env={"PATH": ""}, capture_output=True, text=True, check=False)
    said = "error: there is no Helm: put it on the PATH, or name it in HELM\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:\n  b: 1\n", "a.b: write a comment `# -- …` above it"),
        ("# -- What it does.\na: {}\n", "a: write its type"),
        (
            "# -- (list of what) What it does.\na: []\n",
            "(what) is no type of a value; there are: string",
        ),
    ],
)
def test_a_value_that_is_not_described_is_refused_by_name(text: str, said: str) -> None:
    program = "import sys; from values import *; from schema import *\ntry:\n    "
    program += "schema_text(read_values(sys.argv[1]))\nexcept UndocumentedValue as e:\n    print(e)"
    done = subprocess.run(
        [sys.executable, "-c", program, text],
        cwd=REPOSITORY / "charts" / "generate",
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(said), done.stderr


def test_lint_is_content(helm: Helm) -> None:
    assert "0 chart(s) failed" in helm.run("lint", "--strict", CHART)


def test_chart_and_package_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]
