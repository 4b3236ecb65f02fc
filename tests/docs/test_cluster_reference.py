"""docs/reference/cluster.md and its example are true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import yaml
from rlhf_api.data import Source
from rlhf_api.fields import lookup
from rlhf_api.job import RLHFJob
from rlhf_api.scheduling import GangScheduler
from rlhf_api.validation import parse_job
from rlhf_operator.render import Platform, preview
from rlhf_operator.render.gang import GANGS
from rlhf_operator.support import unsupported

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/reference/cluster.md").read_text(encoding="utf-8")
EXAMPLE = parse_job(yaml.safe_load((REPOSITORY / "examples/cluster.yaml").read_text("utf-8")))


def test_every_field_of_the_page_exists() -> None:
    (_, pods, _) = re.split(r"^## (?:Pods|Models and data)$", PAGE, flags=re.M)
    for row in re.findall(r"^\| (`.*?) \|", pods, re.M):
        parent = ""
        for name in re.findall(r"`([A-Za-z.]+)", row):
            path = name.replace("stages.X", "stages.sft").split(".")
            path = path if len(path) > 1 or not parent else [*parent.split("."), *path]
            parent = ".".join(path[:-1])
            assert lookup(RLHFJob, ["spec", *path]), ".".join(path)


def test_every_gang_scheduler_has_its_row() -> None:
    rows = re.findall(r"^\| `([a-z]+)` \|", PAGE.split("## Gang scheduling")[1], re.M)[1:]
    assert set(rows) == set(GANGS)
    assert {"auto", *rows} == set(get_args(GangScheduler))


def test_every_scheme_has_its_row() -> None:
    for scheme in re.findall(r"([a-z0-9]+)://", get_args(Source)[1].description):
        assert f"`{scheme}://" in PAGE


def test_the_example_runs_on_a_cluster_and_is_rendered() -> None:
    assert unsupported(EXAMPLE, Platform()) == []
    jobs = [item for item in preview(EXAMPLE) if item["kind"] == "Job"]
    assert [item["spec"]["completions"] for item in jobs] == [1, 2, 1, 2]
    assert jobs[-1]["spec"]["activeDeadlineSeconds"] == 172_800


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (REPOSITORY / "docs/reference" / target).exists(), target
