"""docs/guides/coming-from.md names fields that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rlhf_api.fields import lookup
from rlhf_api.job import RLHFJob, Stages

PAGE = (Path(__file__).parents[2] / "docs/guides/coming-from.md").read_text(encoding="utf-8")
OURS = re.findall(r"^\| (`[^|]+) \|", PAGE.split("\n## Data\n")[0], re.M)
FIELDS = [name for cell in OURS for name in re.findall(r"`([a-z][A-Za-z.]+)[:`]", cell)]


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_the_page_exists(field: str) -> None:
    stage, _, rest = field.partition(".")
    path = [stage, *rest.split(".")] if stage in Stages.model_fields else ["sft", *field.split(".")]
    assert lookup(RLHFJob, ["spec", "stages", *path])
