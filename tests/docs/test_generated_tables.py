"""The tables that docs/site/tables.py writes are those of the pages, and name all that there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import sys
import tables
for name in tables.TABLES:
    file, text = tables.page(name)
    if text != file.read_text("utf-8"):
        sys.exit(f"{file.name} is not as generated: run make generate")
"""


def test_the_tables_of_metrics_and_events_are_as_generated() -> None:
    words = [sys.executable, "-c", CODE]
    done = subprocess.run(words, cwd=ROOT / "docs/site", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "row",
    [
        "| `rlhf_jobs` | gauge | phase | RLHFJobs by phase. |",
        "| `rlhf_stage_duration_seconds` | histogram | stage, result | Attempts, from",
        "| `rlhf_operator_watch_age_seconds` | gauge | resource | Since the last sign of life",
    ],
)
def test_a_metric_is_told_with_type_labels_and_meaning(row: str) -> None:
    assert f"\n{row}" in (ROOT / "docs/reference/monitoring.md").read_text("utf-8")
