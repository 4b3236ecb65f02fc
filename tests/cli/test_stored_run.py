"""A pipeline whose checkpoints are in an object store: the same results as in a directory."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import warm
import yaml
from a_run_here import RunHere
from s3_server import Bucket, bucket, keys

EXAMPLES = Path(__file__).parents[2] / "examples"
ROWS = "data/sft.jsonl"
SMALL = {"globalBatchSize": 4, "microBatchSize": 4, "epochs": 1}


def manifest() -> dict[str, Any]:
    """Two stages of the quickstart in a few steps; the data of one is in a bucket, too."""
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / "quickstart.yaml").read_text())
    found["metadata"]["name"] = "stored"
    spec = found["spec"]
    del spec["evaluation"]
    sft, dpo = spec["stages"]["sft"], spec["stages"]["dpo"]
    sft |= {"maxSteps": 6, "checkpointing": {"everySteps": 2}} | SMALL
    sft["data"] = {"source": f"s3://bucket/{ROWS}", "limit": 60, "secret": "keys"}
    dpo |= {"maxSteps": 2} | SMALL
    dpo["data"]["limit"] = 40
    spec["stages"] = {"sft": sft, "dpo": dpo}
    return found


class Here(RunHere):
    """A run in the store, and one beside it in a directory."""

    def __init__(self, folder: Path, server: Bucket) -> None:
        super().__init__(
            folder, {**os.environ, **warm.trainers(), **keys(server), "OMP_NUM_THREADS": "1"}
        )
        self.server = server
        for name in ("base-model", "data"):
            shutil.copytree(EXAMPLES / name, folder / name)
        (folder / "directory.yaml").write_text(yaml.safe_dump(manifest()))
        stored = manifest()
        stored["spec"]["checkpoints"] = {"uri": "s3://bucket/team", "secret": "keys"}
        (folder / "stored.yaml").write_text(yaml.safe_dump(stored))

    def train(self, name: str, code: int = 0) -> str:
        return self.finish(self.start("run", f"{name}.yaml", "--dir", name), code, seconds=500)

    def stages(self, name: str) -> dict[str, Any]:
        status = yaml.safe_load((self.folder / name / "status.yaml").read_text())["status"]
        stages: dict[str, Any] = status["stages"]
        return stages


@pytest.fixture(scope="module")
def trained(here: Here) -> Here:
    here.train("stored")
    return here


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    rows = (EXAMPLES / ROWS).read_bytes()
    with bucket({ROWS: rows}) as server:
        yield Here(tmp_path_factory.mktemp("stored"), server)


def tree(names: list[str]) -> set[str]:
    """Without what differs from run to run: the job's UID, event files."""
    kept = [n for n in names if "/tensorboard/" not in n and "/.lock" not in n]
    return {re.sub(r"^stored-[0-9a-f]{8}/", "job/", name) for name in kept}


def test_the_results_are_those_of_a_directory_and_so_is_the_tree(trained: Here) -> None:
    trained.train("directory")
    stored, plain = trained.stages("stored"), trained.stages("directory")
    for name in ("sft", "dpo"):
        assert stored[name]["hash"] == plain[name]["hash"]
        assert stored[name]["checkpoint"]["digest"] == plain[name]["checkpoint"]["digest"]
        uri = stored[name]["checkpoint"]["uri"]
        assert re.fullmatch(rf"s3://bucket/team/stored-\w{{8}}/{name}-\w+/attempt-1/output", uri)
    (volume,) = (trained.folder / "directory" / "volumes").iterdir()
    files = [p.relative_to(volume).as_posix() for p in volume.rglob("*") if p.is_file()]
    keys = [key for key in trained.server.files if key.startswith("team/") and key[-1] != "/"]
    assert tree([key.removeprefix("team/") for key in keys]) == tree(files)


def test_a_second_run_trains_nothing_and_uploads_nothing(trained: Here) -> None:
    before, uploaded = trained.stages("stored"), len(trained.server.put)
    trained.train("stored")
    assert trained.stages("stored") == before
    assert len(trained.server.put) == uploaded


def test_a_report_and_a_model_come_from_the_store(trained: Here) -> None:
    shutil.rmtree(trained.folder / "stored" / "copies")
    trained.rlhfctl("report", "--dir", "stored")
    assert "<svg" in (trained.folder / "stored" / "report.html").read_text()
    trained.rlhfctl("fetch", "--dir", "stored", "--stage", "sft", "--out", "model")
    assert (trained.folder / "model" / "model.safetensors").is_file()


def test_no_pod_keeps_its_copy(trained: Here) -> None:
    assert not list((trained.folder / "stored" / "pods").glob("*/checkpoints"))


def test_credentials_that_are_refused_end_the_run_before_anything_trains(here: Here) -> None:
    shut = manifest()
    shut["spec"]["stages"]["sft"]["data"] = {"source": ROWS, "limit": 60}  # nothing is fetched
    shut["spec"]["checkpoints"] = {"uri": "s3://bucket/shut", "secret": "keys"}
    (here.folder / "shut.yaml").write_text(yaml.safe_dump(shut))
    here.server.shut = lambda key: key.startswith("shut/")
    said = here.train("shut", code=64)
    assert "do not give access to s3://bucket/shut/" in said
    assert set(here.stages("shut")) <= {"sft", "dpo"}
    assert not any(stage.get("attempt") for stage in here.stages("shut").values())
