"""The pod that reads what an object store keeps: as careful as the pods that wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import a_job
from pod_security import violations
from rlhf_api.job import RLHFJob
from rlhf_cli.targets import reader
from rlhf_cli.targets.reader_pod import reader_pod
from rlhf_trainer.checkpoints.copying import parser
from s3_server import bucket, write_keys

PATTERNS = ["checkpoints/assistant-1/sft-2/attempt-*/metrics.jsonl"]


def a_stored_job(**checkpoints: Any) -> RLHFJob:
    job = a_job().with_spec("checkpoints", {"uri": "s3://bucket/team", **checkpoints})
    return job.with_spec("resources", {"serviceAccount": "trainer"}).build()


def spec_of(job: RLHFJob) -> dict[str, Any]:
    spec: dict[str, Any] = reader_pod(job, "trainer:1", PATTERNS, {}, None)["spec"]
    return spec


def copy_of(spec: dict[str, Any]) -> list[str]:
    words: list[str] = json.loads(spec["containers"][0]["command"][-1])["copy"]
    return words


def test_what_an_object_store_keeps_is_copied_before_it_is_read() -> None:
    pod = spec_of(a_stored_job(secret="keys"))
    names = [PATTERNS[0].removeprefix("checkpoints/")]
    words = ["copy", "s3://bucket/team", "checkpoints", *names, "--secret", "keys"]
    assert copy_of(pod) == words
    assert parser().parse_args(words[1:]).secret == "keys"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert "emptyDir" in volumes.pop("checkpoints")
    (secret,) = volumes.values()
    assert secret["secret"]["secretName"] == "keys"
    assert pod["serviceAccountName"] == "trainer"
    assert violations(pod) == []


def test_without_a_secret_the_pods_own_identity_serves() -> None:
    pod = spec_of(a_stored_job())
    assert "--secret" not in copy_of(pod)
    assert [volume["name"] for volume in pod["volumes"]] == ["checkpoints"]


def test_a_claim_is_read_as_it_is() -> None:
    pod = spec_of(a_job().build())
    assert copy_of(pod) == []
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert mount["readOnly"]
    no_device = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}
    assert no_device in pod["containers"][0]["env"]
    assert violations(pod) == []


def test_a_copy_that_fails_ends_the_reader_with_its_exit_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["copy", "s3://bucket/team", str(tmp_path), "a/*", "--secret", "keys"]
    with bucket({}) as server, pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        write_keys(tmp_path / "secrets" / "keys", server, "OTHER")
        with pytest.raises(SystemExit) as ended:
            reader.main([], {}, words)
    assert ended.value.code == 64
    assert "do not give access to s3://bucket/team/a" in capfd.readouterr().err
