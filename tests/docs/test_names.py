"""Names of settings that pages tell in passing are those of the project."""

from __future__ import annotations

import re
from itertools import chain
from typing import Final

from guide_commands import REPOSITORY

CODE: Final = re.compile(r"`([^`\n]+)`")
CAMEL_CASE: Final = re.compile(r"\b[a-z]{2,}(?:[A-Z][a-z0-9]*)+\b")
KUEUES: Final = {"waitForPodsReady", "requeuingStrategy", "backoffLimitCount"}


def test_a_setting_that_a_page_names_is_known() -> None:
    manifests = ((REPOSITORY / folder).rglob("*.yaml") for folder in ("crds", "charts", "examples"))
    sources = chain((REPOSITORY / "operator").rglob("*.py"), *manifests)
    known = {word for file in sources for word in CAMEL_CASE.findall(file.read_text("utf-8"))}
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
    told = {
        (page.name, word)
        for page in pages
        for code in CODE.findall(page.read_text("utf-8"))
        for word in CAMEL_CASE.findall(code)
    }
    assert len(told) > 100
    assert {(page, word) for page, word in told if word not in known | KUEUES} == set()
