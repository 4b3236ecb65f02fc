"""The pod that reads what an object store keeps: as careful as the pods that wrote it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from builders import a_job
from pod_security import violations
from rlhf_api.job import RLHFJob
from rlhf_cli.failures import Failure
from rlhf_cli.targets.cluster_files import _started
from rlhf_cli.targets.reader_pod import reader_pod

PATTERNS = ["checkpoints/assistant-1/sft-2/attempt-*/metrics.jsonl"]


def a_stored_job(**checkpoints: Any) -> RLHFJob:
    job = a_job().with_spec("checkpoints", {"uri": "s3://bucket/team", **checkpoints})
    return job.with_spec("resources", {"serviceAccount": "trainer"}).build()


def test_what_an_object_store_keeps_is_copied_before_it_is_read() -> None:
    pod = reader_pod(a_stored_job(secret="keys"), "trainer:1", PATTERNS, {}, None)["spec"]
    (copy,) = pod["initContainers"]
    assert copy["command"][:5] == ["python", "-m", "rlhf_trainer", "copy", "--secret"]
    assert copy["command"][5:] == [
        "keys", "s3://bucket/team", "checkpoints", PATTERNS[0].removeprefix("checkpoints/")
    ]  # fmt: skip
    (reader,) = pod["containers"]
    assert [mount["name"] for mount in reader["volumeMounts"]] == ["checkpoints"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert "emptyDir" in volumes.pop("checkpoints")
    (secret,) = volumes.values()
    assert secret["secret"]["secretName"] == "keys"
    assert pod["serviceAccountName"] == "trainer"
    assert violations(pod) == []


def test_without_a_secret_the_pods_own_identity_serves() -> None:
    pod = reader_pod(a_stored_job(), "trainer:1", PATTERNS, {}, None)["spec"]
    assert "--secret" not in pod["initContainers"][0]["command"]
    assert [volume["name"] for volume in pod["volumes"]] == ["checkpoints"]


class Pods:
    """A cluster that shows one pod, in one state after the other."""

    def __init__(self, *states: dict[str, Any]) -> None:
        self._states = iter(states)

    async def raw_pod(self, name: str) -> dict[str, Any]:
        return {"status": next(self._states)}


def copying(**state: Any) -> dict[str, Any]:
    return {"phase": "Pending", "initContainerStatuses": [{"name": "copy", "state": state}]}


def test_a_copy_may_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_cli.targets.cluster_files.LOOK_EVERY", 0.0)
    monkeypatch.setattr("rlhf_cli.targets.cluster_files.START_WITHIN", -1.0)
    looks = [copying(running={"startedAt": "now"})] * 9
    with pytest.raises(Failure, match="does not start"):
        asyncio.run(_started(Pods({"phase": "Pending"}), "reader"))  # type: ignore[arg-type]
    asyncio.run(_started(Pods(*looks, {"phase": "Running"}), "reader"))  # type: ignore[arg-type]


def test_a_copy_that_fails_says_why_and_ends_with_its_exit_code() -> None:
    ended = {"exitCode": 64, "message": "one line\nthe credentials do not give access to s3://b"}
    pods = Pods(copying(terminated=ended) | {"phase": "Failed"})
    with pytest.raises(Failure, match="credentials do not give access to s3://b") as caught:
        asyncio.run(_started(pods, "reader"))  # type: ignore[arg-type]
    assert caught.value.exit_code == 64
