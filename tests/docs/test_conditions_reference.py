"""docs/reference/conditions.md names every reason and event that the operator gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import rlhf_operator
from rlhf_api.job import GROUP, VERSION
from rlhf_api.status import EndKind
from rlhf_operator.conditions import KINDS
from rlhf_operator.events import TERMINAL, WHEN
from rlhf_operator.names import (
    ANNOTATION_APPROVE,
    ANNOTATION_REFRESH,
    ANNOTATION_RETRY_STAGE,
    LABEL_JOB,
)
from rlhf_operator.outcome import REASONS
from rlhf_operator.render.platform import PROGRESS_AUDIENCE
from rlhf_operator.waiting import UNPLACED

PACKAGE = Path(rlhf_operator.__file__).parent
PAGE = Path(__file__).parents[2] / "docs/reference/conditions.md"
GIVEN = re.compile(
    r"\b(?:Decision|Pause|Wait|Said|State|Event|Outcome|Refused)\(\s*(?:\"\w+\",\s*)?\"(\w+)\""
)
NOT_REASONS = {"Normal", "Warning", "Failed", "Fault", "Disruption", "Pending", "Stalled"} | {
    "Reconciling", "True", "False", "Done",
}  # fmt: skip


def given() -> set[str]:
    sources = [path.read_text(encoding="utf-8") for path in sorted(PACKAGE.glob("*.py"))]
    found = {word for text in sources for word in GIVEN.findall(text)} - NOT_REASONS
    return found | set(REASONS.values()) | set(TERMINAL.values()) | set(UNPLACED) | set(KINDS)


@pytest.mark.parametrize("word", sorted(given()))
def test_every_reason_and_event_is_explained(word: str) -> None:
    assert f"`{word}`" in PAGE.read_text(encoding="utf-8")


def test_the_search_finds_reasons() -> None:
    assert {"Unschedulable", "GangAdmitted", "Interrupted", "NoResult", "NameTaken"} <= given()


def test_annotations_and_labels_that_pages_and_pictures_name_are_there() -> None:
    prefixes = (ANNOTATION_APPROVE, ANNOTATION_RETRY_STAGE)
    known = {LABEL_JOB, ANNOTATION_REFRESH, PROGRESS_AUDIENCE, f"{GROUP}/{VERSION}"}
    told = {
        name
        for page in PAGE.parents[1].rglob("*.*")
        if page.suffix in (".md", ".svg")
        for name in re.findall(r"\brlhf\.dev/[a-z0-9-]+", page.read_text(encoding="utf-8"))
    }
    assert {name for name in told if not name.startswith(prefixes)} == known


def test_every_event_of_a_transition_has_its_row() -> None:
    text = (PACKAGE / "events.py").read_text(encoding="utf-8")
    told = set(re.findall(r'Event\([^"()]*"(?:Normal|Warning)", "(\w+)"', text))
    ends = {f"Attempt{kind}" for kind in get_args(EndKind)} - {"AttemptDone"}
    assert told | ends | set(TERMINAL.values()) == set(WHEN)
