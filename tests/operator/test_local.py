"""Whole runs on one machine, with an image whose trainer does as it is told in milliseconds."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import MANIFEST
from rlhf_api.job import RLHFJob
from rlhf_operator import local
from rlhf_operator.local.cluster import LocalCluster
from rlhf_operator.local.errors import LocalRunError
from rlhf_operator.local.machine import Machine
from rlhf_operator.local.pods import LocalPod
from rlhf_operator.local.processes import is_locked
from rlhf_operator.local.progress_server import LoopbackServer
from rlhf_operator.local.store import LOCK_FILE, Store, is_in_use
from rlhf_operator.names import claim_name
from rlhf_operator.observed import Attempt
from rlhf_operator.outcome import outcome_of
from rlhf_operator.render import render

IMAGE = Path(__file__).parent / "fake_image"
TWO_CORES = Machine(2)


class Bench:
    """A directory with data, a job, and a book that tells the fake trainer what to do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.directory = path / "run"
        self.behaviour = path / "behaviour.json"
        self.behave({})
        (path / "base").mkdir()
        (path / "base" / "config.json").write_text("{}")
        for name in ("sft", "pairs", "prompts"):
            (path / f"{name}.jsonl").write_text(f"{name}\n")
        self.changes: list[RLHFJob] = []

    def behave(self, acts: dict[str, dict[str, Any]]) -> None:
        self.behaviour.write_text(json.dumps(acts))

    def job(self, name: str = "tiny", **stages: Any) -> RLHFJob:
        return RLHFJob.parse(self.manifest(name, **stages))

    def manifest(self, name: str = "tiny", **stages: Any) -> dict[str, Any]:
        data = {
            "sft": {"data": {"source": str(self.path / "sft.jsonl")}},
            "reward": {"data": {"source": str(self.path / "pairs.jsonl")}},
            "ppo": {"data": {"source": str(self.path / "prompts.jsonl")}},
            "dpo": {"data": {"source": str(self.path / "pairs.jsonl")}},
        }
        merged = {key: {**value, **stages.get(key, {})} for key, value in data.items()}
        for stage in merged.values():
            stage.setdefault("retry", {"backoffSeconds": 0.0})
        spec = {"model": {"source": str(self.path / "base")}, "stages": merged}
        return {**MANIFEST, "metadata": {"name": name}, "spec": spec}

    def run(self, job: RLHFJob | None = None, machine: Machine = TWO_CORES) -> RLHFJob:
        return local.run(
            job or self.job(), self.directory, on_change=self.changes.append, machine=machine
        )

    def started(self) -> list[dict[str, Any]]:
        file = self.behaviour.with_suffix(".started")
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def stages(self) -> list[str]:
        return [entry["stage"] for entry in self.started()]

    def wait(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 180
        while not condition():
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.05)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(IMAGE), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_BEHAVIOUR", str(made.behaviour))
    return made


def status_of(job: RLHFJob) -> dict[str, tuple[str, int]]:
    assert job.status
    return {name: (stage.phase, stage.attempt) for name, stage in job.status.stages.items()}


def test_a_pipeline_runs_to_its_end(bench: Bench) -> None:
    job = bench.run()
    assert job.status is not None
    assert job.status.phase == "Succeeded"
    assert status_of(job) == dict.fromkeys(("sft", "reward", "ppo", "dpo"), ("Succeeded", 1))
    assert bench.stages()[:2] == ["prepare", "sft"]
    assert bench.stages().index("reward") < bench.stages().index("ppo")
    for entry in bench.started():
        assert all(entry["inputs"].values())
        assert all(entry["files"].values())


def test_the_second_run_starts_nothing(bench: Bench) -> None:
    bench.run()
    before = bench.started()
    assert status_of(bench.run()) == status_of(bench.changes[-1])
    assert bench.started() == before


def test_one_changed_ppo_field_starts_ppo_alone(bench: Bench) -> None:
    bench.run()
    before = len(bench.started())
    bench.run(bench.job(ppo={"kl": {"coef": 0.5}}))
    assert bench.stages()[before:] == ["ppo"]


def test_changed_content_of_the_sft_data_starts_everything_after_it(bench: Bench) -> None:
    bench.run()
    before = len(bench.started())
    (bench.path / "sft.jsonl").write_text("something else\n")
    bench.run()
    assert sorted(bench.stages()[before:]) == ["dpo", "ppo", "prepare", "reward", "sft"]


def test_a_touched_file_is_prepared_again_and_trains_nothing(bench: Bench) -> None:
    bench.run()
    before = len(bench.started())
    os.utime(bench.path / "sft.jsonl", (1, 1))
    bench.run()
    assert bench.stages()[before:] == ["prepare"]


def test_the_status_file_is_the_job_with_its_status(bench: Bench) -> None:
    job = bench.run()
    written = yaml.safe_load((bench.directory / "status.yaml").read_text())
    assert RLHFJob.parse(written) == job
    assert bench.changes[-1] == job
    assert "annotations" not in written["metadata"]
    checkpoint = job.status.stages["ppo"].checkpoint if job.status else None
    assert checkpoint
    volume = bench.directory / "volumes" / claim_name(job)
    assert (volume / checkpoint.uri / "manifest.json").exists()


def test_a_pod_gets_what_a_container_would(bench: Bench) -> None:
    bench.run(bench.job(sft={"resources": {"nodes": 4, "gpusPerNode": 8}}))
    sft = next(entry for entry in bench.started() if entry["stage"] == "sft")
    pod = bench.directory / "pods" / "tiny-sft-1-0"
    assert Path(sft["cwd"]) == pod
    options = dict(zip(sft["argv"][1:-1:2], sft["argv"][2:-1:2], strict=True))
    assert options["--nnodes"] == "1"
    assert options["--nproc-per-node"] == "1"
    assert options["--node-rank"] == "0"
    assert options["--master-addr"] == "127.0.0.1"
    assert options["--master-port"] != "29500"
    assert sft["env"] == {
        "JOB_COMPLETION_INDEX": "0",
        "OMP_NUM_THREADS": "2",
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "TMPDIR": str(pod / "tmp"),
    }


def test_branches_that_run_side_by_side_share_the_cores(bench: Bench) -> None:
    bench.behave({"reward": {"sleep": 0.5}, "dpo": {"sleep": 0.5}})
    bench.run(machine=Machine(4))
    threads = {entry["stage"]: entry["env"]["OMP_NUM_THREADS"] for entry in bench.started()}
    assert threads["sft"] == "4"
    assert threads["reward"] == threads["dpo"] == "2"


def test_a_fault_is_retried_and_the_log_of_each_attempt_stays(bench: Bench) -> None:
    bench.behave({"sft/1": {"exit": 75, "silent": True}})
    job = bench.run()
    assert status_of(job)["sft"] == ("Succeeded", 2)
    assert "last words" in (bench.directory / "pods" / "tiny-sft-1-0" / "log.txt").read_text()


def test_the_last_words_of_a_log_explain_a_failure_without_a_message(bench: Bench) -> None:
    bench.behave({"sft": {"exit": 1, "silent": True}})
    job = bench.run(bench.job(sft={"retry": {"maxFaults": 0}}))
    assert job.status
    assert job.status.phase == "Failed"
    assert "last words" in (job.status.stages["sft"].message or "")


def test_bad_configuration_ends_the_run_and_a_second_run_tries_again(bench: Bench) -> None:
    bench.behave({"dpo": {"exit": 64}})
    job = bench.run()
    assert job.status
    assert job.status.phase == "Failed"
    assert status_of(job)["ppo"] == ("Succeeded", 1)
    assert job.status.stages["dpo"].message == "told to exit 64"
    bench.behave({})
    assert status_of(bench.run())["dpo"] == ("Succeeded", 2)


def test_a_deadline_ends_an_attempt(bench: Bench) -> None:
    bench.behave({"sft": {"sleep": 600}})
    retry = {"retry": {"maxFaults": 0, "deadlineSeconds": 1}}
    job = bench.run(bench.job(sft=retry))
    assert job.status
    assert job.status.stages["sft"].reason == "DeadlineExceeded"


def test_a_job_of_another_name_does_not_displace_the_run_of_a_directory(bench: Bench) -> None:
    first = bench.run()
    with pytest.raises(local.LocalRunError, match="holds the run of the job tiny, and this is oth"):
        bench.run(bench.job("other"))
    before = len(bench.started())
    assert status_of(bench.run()) == status_of(first)
    assert len(bench.started()) == before


def test_a_result_whose_directory_is_gone_is_made_again(bench: Bench) -> None:
    job = bench.run()
    assert job.status
    checkpoint = job.status.stages["dpo"].checkpoint
    assert checkpoint
    (bench.directory / "volumes" / claim_name(job) / checkpoint.uri / "manifest.json").unlink()
    before = len(bench.started())
    assert bench.run().status
    assert bench.stages()[before:] == ["dpo"]


def test_two_runs_never_share_a_directory(bench: Bench) -> None:
    bench.behave({"sft": {"sleep": 600}})
    process = in_background(bench)
    bench.wait(lambda: "sft" in bench.stages())
    with pytest.raises(local.LocalRunError, match="Another run"):
        bench.run()
    process.terminate()
    process.wait(180)


def test_an_unreadable_status_says_what_to_do(bench: Bench) -> None:
    bench.directory.mkdir()
    (bench.directory / "status.yaml").write_text("kind: [")
    with pytest.raises(local.LocalRunError, match="remove it to start afresh"):
        bench.run()


def test_a_terminated_run_lets_its_pods_save_and_goes_on_later(bench: Bench) -> None:
    bench.behave({"sft/1": {"sleep": 600}})
    process = in_background(bench)
    bench.wait(lambda: "sft" in bench.stages())
    process.send_signal(signal.SIGTERM)
    assert process.wait(180) != 0
    status = yaml.safe_load((bench.directory / "status.yaml").read_text())["status"]
    assert status["stages"]["sft"]["ended"]["kind"] == "Disruption"
    assert status["stages"]["sft"]["ended"]["exitCode"] == 143
    assert status["phase"] == "Suspended"
    assert status["stages"]["sft"]["reason"] == "Interrupted"
    (suspended,) = [item for item in status["conditions"] if item["type"] == "Suspended"]
    assert (suspended["status"], suspended["reason"]) == ("True", "Interrupted")
    job = bench.run()
    assert status_of(job)["sft"] == ("Succeeded", 2)
    assert bench.stages().count("prepare") == 1


def test_no_pod_outlives_a_killed_run(bench: Bench) -> None:
    bench.behave({"sft/1": {"sleep": 600, "child": True}})
    process = in_background(bench)
    bench.wait(bench.behaviour.with_suffix(".child").exists)
    pid = bench.started()[-1]["pid"]
    child = int(bench.behaviour.with_suffix(".child").read_text())
    process.kill()
    process.wait(180)
    bench.wait(lambda: not alive(pid) and not alive(child))
    job = bench.run()
    assert status_of(job)["sft"] == ("Succeeded", 2)
    assert job.status
    assert job.status.stages["sft"].faults == 0


def test_a_pod_that_ignores_its_end_is_waited_for(bench: Bench) -> None:
    """The run is killed and started again at once, while the old pod still ends."""
    bench.behave({"sft/1": {"sleep": 2, "ignore_term": True}})
    process = in_background(bench)
    bench.wait(lambda: "sft" in bench.stages())
    pid = bench.started()[-1]["pid"]
    process.kill()
    process.wait(180)
    assert alive(pid)
    job = bench.run()
    assert status_of(job)["sft"][0] == "Succeeded"
    assert not alive(pid)


def test_a_killed_supervisor_leaves_nothing_behind(bench: Bench) -> None:
    bench.behave({"sft/1": {"sleep": 600, "child": True}})
    process = in_background(bench)
    bench.wait(bench.behaviour.with_suffix(".child").exists)
    child = int(bench.behaviour.with_suffix(".child").read_text())
    state = json.loads((bench.directory / "pods" / "tiny-sft-1-0" / "process.json").read_text())
    os.kill(state["pid"], signal.SIGKILL)
    process.wait(180)
    assert not alive(child)
    written = RLHFJob.parse(yaml.safe_load((bench.directory / "status.yaml").read_text()))
    assert status_of(written)["sft"] == ("Succeeded", 2)


def test_a_look_at_a_pod_whose_supervisor_was_killed_changes_nothing(bench: Bench) -> None:
    bench.behave({"sft/1": {"sleep": 600, "child": True}})
    process = in_background(bench)
    bench.wait(bench.behaviour.with_suffix(".child").exists)
    child = int(bench.behaviour.with_suffix(".child").read_text())
    folder = bench.directory / "pods" / "tiny-sft-1-0"
    supervisor = json.loads((folder / "process.json").read_text())["pid"]
    process.send_signal(signal.SIGSTOP)
    os.kill(supervisor, signal.SIGKILL)
    process.kill()
    process.wait(180)
    bench.wait(lambda: not is_locked(folder / "pod.lock"))
    pod = LocalPod.read(folder)
    assert pod
    assert pod.observed().phase == "Running"
    assert alive(child)
    assert status_of(bench.run())["sft"] == ("Succeeded", 2)
    assert not alive(child)


def test_a_killed_trainer_is_a_fault(bench: Bench) -> None:
    bench.behave({"sft/1": {"sleep": 600}})
    process = in_background(bench)
    bench.wait(lambda: "sft" in bench.stages())
    os.kill(bench.started()[-1]["pid"], signal.SIGKILL)
    process.wait(180)
    written = RLHFJob.parse(yaml.safe_load((bench.directory / "status.yaml").read_text()))
    assert status_of(written)["sft"] == ("Succeeded", 2)
    assert written.status
    assert written.status.stages["sft"].faults == 1


def alive(pid: int) -> bool:
    try:
        state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def in_background(bench: Bench) -> subprocess.Popen[bytes]:
    """The same run in a process of its own, which a test may kill."""
    manifest = bench.path / "job.json"
    manifest.write_text(json.dumps(bench.manifest()))
    code = (
        "import json, sys, pathlib;"
        "from rlhf_api.job import RLHFJob; from rlhf_operator import local;"
        "job = RLHFJob.parse(json.loads(pathlib.Path(sys.argv[1]).read_text()));"
        "local.run(job, pathlib.Path(sys.argv[2]), on_change=lambda job: None)"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(manifest), str(bench.directory)])


def test_what_prepare_fetched_and_is_gone_is_fetched_again(bench: Bench) -> None:
    manifest = bench.manifest()
    manifest["spec"]["model"]["source"] = "hf://tiny/model"
    job = RLHFJob.parse(manifest)
    bench.behave({"prepare": {"fetch": True}})
    bench.run(job)
    assert bench.run(job).status
    assert bench.stages().count("prepare") == 1
    shutil.rmtree(bench.directory / "volumes" / "tiny-checkpoints" / "sources")
    bench.run(job)
    assert bench.stages().count("prepare") == 2
    assert bench.stages().count("sft") == 1


def _apply(cluster: LocalCluster, objects: list[dict[str, Any]]) -> None:
    asyncio.run(cluster.apply(cluster.job, objects))


def _attempts(cluster: LocalCluster) -> tuple[Attempt, ...]:
    return asyncio.run(cluster.observe(cluster.job, datetime.now(UTC))).attempts


def test_every_pod_of_a_gang_gets_its_own_index(bench: Bench) -> None:
    """Several pods, as a cluster has them; a run itself fits a job to one."""
    bench.behave({"sft": {"exit": 75, "starts": 2}})  # not before: a failure ends the whole gang
    store = Store(bench.directory, bench.job(sft={"resources": {"nodes": 2}}), lambda job: None)
    server = LoopbackServer()
    cluster = LocalCluster(store.job, store, TWO_CORES, server, {})
    objects = render(store.job, "sft", 1, "sha256:a", "sha256:b", cluster.platform)
    _apply(cluster, objects)
    (attempt,) = _attempts(cluster)
    assert (attempt.size, len(attempt.pods)) == (2, 2)
    bench.wait(lambda: cluster.step() or not cluster.has_work())
    server.close()
    store.close()
    told = sorted((e["env"]["JOB_COMPLETION_INDEX"], e["argv"][4]) for e in bench.started())
    assert told == [("0", "0"), ("1", "1")]
    assert len({e["argv"][10] for e in bench.started()}) == 1  # one port for the gang
    (attempt,) = _attempts(cluster)
    assert attempt.condition == "Failed"


def test_a_gang_that_loses_a_pod_ends_as_a_whole(bench: Bench) -> None:
    bench.behave({"sft": {"sleep": 600}})
    store = Store(bench.directory, bench.job(sft={"resources": {"nodes": 2}}), lambda job: None)
    server = LoopbackServer()
    cluster = LocalCluster(store.job, store, TWO_CORES, server, {})
    _apply(cluster, render(store.job, "sft", 1, "sha256:a", "sha256:b", cluster.platform))
    bench.wait(lambda: cluster.step() or len(bench.started()) == 2)
    os.kill(bench.started()[0]["pid"], signal.SIGKILL)
    bench.wait(lambda: cluster.step() or not cluster.has_work())
    server.close()
    store.close()
    (attempt,) = _attempts(cluster)
    assert sorted(pod.exit_code or 0 for pod in attempt.pods) == [137, 143]
    assert outcome_of(attempt).exit_code == 137


def test_pods_wait_for_free_gpus(bench: Bench) -> None:
    bench.behave({"reward": {"sleep": 0.3}, "dpo": {"sleep": 0.3}})
    manifest = bench.manifest()
    manifest["spec"]["resources"] = {"gpusPerNode": 1}
    bench.run(RLHFJob.parse(manifest), Machine(2, ("3",)))
    spans = {entry["stage"]: entry["time"] for entry in bench.started()}
    assert abs(spans["reward"] - spans["dpo"]) >= 0.3  # one after the other
    assert {e["env"]["CUDA_VISIBLE_DEVICES"] for e in bench.started()} == {"3", ""}


def test_who_looks_at_a_run_for_long_does_not_keep_another_from_it(bench: Bench) -> None:
    """A process that asks whether a run is in use may get no core before it has let go of it."""
    Store(bench.directory, bench.job(), lambda job: None).close()
    with (bench.directory / LOCK_FILE).open() as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        threading.Timer(0.5, fcntl.flock, (looker, fcntl.LOCK_UN)).start()
        store = Store(bench.directory, bench.job(), lambda job: None)
    assert is_in_use(bench.directory)
    with pytest.raises(LocalRunError, match="Another run is using"):
        Store(bench.directory, bench.job(), lambda job: None)
    store.close()
    assert not is_in_use(bench.directory)


def test_a_pod_that_is_deleted_while_it_starts_ends(bench: Bench) -> None:
    bench.behave({"sft": {"sleep": 600}})
    store = Store(bench.directory, bench.job(), lambda job: None)
    server = LoopbackServer()
    cluster = LocalCluster(store.job, store, TWO_CORES, server, {})
    _apply(cluster, render(store.job, "sft", 1, "sha256:a", "sha256:b", cluster.platform))
    cluster.step()
    asyncio.run(cluster.delete(store.job, "sft", 1))
    bench.wait(lambda: cluster.step() or not cluster.has_work())
    cluster.step()
    server.close()
    store.close()
    assert _attempts(cluster) == ()
    assert (bench.directory / "pods" / "tiny-sft-1-0" / "log.txt").exists()
