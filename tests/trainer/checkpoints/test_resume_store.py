"""Stages whose checkpoints are in an object store: each attempt starts on an empty disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cluster_jobs import wait_until
from forked import ForkedRun
from resuming import digest, sft_settings
from rlhf_api.run import StageRun
from s3_server import Bucket, bucket
from store_pod import empty_disk, on_store, second_node, write_secret
from trainer_pod import Pod

STEPS = 16


@pytest.fixture
def server(pod: Pod) -> Iterator[Bucket]:
    with bucket({}) as running:
        write_secret(pod.directory, running)
        yield running


def manifests(server: Bucket) -> list[str]:
    """Of training states that are whole in the store."""
    return sorted(k for k in server.files if "/steps/" in k and k.endswith("/manifest.json"))


def stored(server: Bucket, run: StageRun) -> str:
    """SHA-256 of the weights that were handed on."""
    key = f"team/{run.output.removeprefix('checkpoints/')}/output/model.safetensors"
    return hashlib.sha256(server.files[key]).hexdigest()


def undisturbed(pod: Pod, chosen: dict[str, Any], ranks: int = 1) -> str:
    """The weights of a run that nobody stops, whose checkpoints are on a claim."""
    whole = pod.stage_run("sft", chosen, digest="222222222222")
    codes, log = pod.forked(whole, ranks)
    assert codes == [0] * ranks, log
    return digest(pod, whole)


def stop_once_stored(started: ForkedRun, server: Bucket, stop: Callable[[], None]) -> None:
    wait_until(lambda: manifests(server) or not started.is_running, timeout=120)
    assert started.is_running, started.log
    stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "nodes", "changes"),
    [(1, 1, {}), (1, 2, {"zero": {"stage": 2}})],
    ids=["one-node", "two-nodes"],
)
def test_a_killed_run_goes_on_from_the_store_with_the_same_weights(
    ranks: int, nodes: int, changes: dict[str, Any], pod: Pod, server: Bucket
) -> None:
    chosen = sft_settings(pod, STEPS, **changes)
    expected = undisturbed(pod, chosen, ranks * nodes)
    others = [second_node(pod)] if nodes == 2 else []
    first = on_store(pod.stage_run("sft", chosen))
    started = pod.fork(first, ranks, *others)
    stop_once_stored(started, server, started.kill)
    assert not any("/output/" in key for key in server.files)
    for directory in (pod.directory, *others):
        empty_disk(directory)
    last = on_store(pod.stage_run("sft", chosen, attempt=2))
    again = pod.fork(last, ranks, *others)
    assert again.wait() == [0] * (ranks * nodes), again.log
    assert "going on from step" in again.log
    assert stored(server, last) == expected
    assert pod.result()["checkpoint"]["uri"].startswith("s3://bucket/team/job/sft-")


@pytest.mark.slow
def test_a_node_that_is_lost_ends_the_other_one_for_another_attempt(
    pod: Pod, server: Bucket
) -> None:
    run = on_store(pod.stage_run("sft", sft_settings(pod, 400)))
    started = pod.fork(run, 1, second_node(pod))
    stop_once_stored(started, server, started.processes[1].kill)
    assert started.wait() == [75, -9], started.log


@pytest.mark.slow
def test_a_state_that_is_saved_on_sigterm_is_in_the_store_before_the_end(
    pod: Pod, server: Bucket
) -> None:
    chosen = sft_settings(pod, 400, checkpointing={"everySteps": STEPS})
    run = on_store(pod.stage_run("sft", chosen))
    started = pod.fork(run)
    record = pod.directory / run.output / "metrics.jsonl"
    wait_until(lambda: record.exists() and record.read_text(), timeout=120)
    started.terminate()
    assert started.wait() == [143], started.log
    step = pod.result()["step"]
    assert f"step-{step:08d}" in manifests(server)[-1]
    kept = server.files[f"team/{run.output.removeprefix('checkpoints/')}/metrics.jsonl"]
    assert kept.decode() == record.read_text()


@pytest.mark.slow
def test_refused_credentials_end_a_stage_for_good(pod: Pod, server: Bucket) -> None:
    write_secret(pod.directory, server, key="OTHER")
    started = pod.fork(
        on_store(
            pod.stage_run(
                "sft",
                sft_settings(pod, STEPS),
                paths={**pod.paths, "hf://m": "checkpoints/sources/a"},
            )
        )
    )
    assert started.wait() == [64], started.log
    said = pod.result()["message"]
    assert "credentials do not give access to s3://bucket/team/" in said
    assert "Secret store has to be allowed to" in said
    assert "SECRET" not in started.log
