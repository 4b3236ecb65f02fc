"""A gang of two nodes whose checkpoints are in an object store, on a real control plane."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import short_job
from a_run_here import RunHere
from cluster_jobs import wait_until
from s3_server import Bucket, bucket, keys
from training_cluster import PATIENCE, Object, TrainingCluster


@pytest.fixture(scope="module")
def server() -> Iterator[Bucket]:
    with bucket({}) as running:
        yield running


def manifest() -> Object:
    """SFT alone, each step of it saved."""
    made = short_job.manifest()
    spec = made["spec"]
    del spec["evaluation"]
    small = {"globalBatchSize": 8, "microBatchSize": 4, "maxSteps": 8, "resources": {"nodes": 2}}
    saved = {"checkpointing": {"everySteps": 1}, "retry": {"backoffSeconds": 1}}
    spec["stages"] = {"sft": spec["stages"]["sft"] | small | saved}
    spec["checkpoints"] = {"uri": "s3://bucket/team", "secret": "store"}
    return made


def steps(server: Bucket, attempt: int) -> list[str]:
    """Steps of an attempt that are whole in the store."""
    found = [key for key in server.files if f"/attempt-{attempt}/steps/" in key]
    return sorted(key.split("/")[-2] for key in found if key.endswith("/manifest.json"))


@pytest.mark.slow
def test_a_gang_goes_on_from_the_store_after_a_worker_was_killed_and_its_model_is_fetched(
    cluster: TrainingCluster, server: Bucket, tmp_path: Path
) -> None:
    cluster.offer_data()
    literals = [f"--from-literal={name}={value}" for name, value in keys(server).items()]
    cluster.kubectl("create", "secret", "generic", "store", *literals)
    cluster.apply(manifest())
    wait_until(lambda: steps(server, 1), timeout=PATIENCE)
    cluster.kubelet.kill(cluster.pod("sft", 1, 1))
    job = cluster.wait_ready()
    sft = job["status"]["stages"]["sft"]
    assert sft["attempt"] == 2
    assert sft["checkpoint"]["uri"].startswith("s3://bucket/team/quickstart-")
    assert job["status"]["storage"] == "s3://bucket/team"
    output = sft["checkpoint"]["uri"].removeprefix("s3://bucket/")
    assert f"{output}/model.safetensors" in server.files
    assert steps(server, 2)[0] > "step-00000001", "it went on from a step of the first attempt"
    claims = cluster.kubectl("get", "pvc", "-o", "name").split()
    assert claims == [f"persistentvolumeclaim/{short_job.CLAIM}"]
    fetch = ["fetch", short_job.NAME, "--namespace", cluster.jobs.namespace, "--out", "model"]
    kubeconfig = ["--kubeconfig", str(cluster.plane.kubeconfig)]
    here = RunHere(tmp_path, os.environ)
    here.rlhfctl(*fetch, *kubeconfig)
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert weights == server.files[f"{output}/model.safetensors"]
