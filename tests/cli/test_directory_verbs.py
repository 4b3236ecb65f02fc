"""Verbs on a run of this machine while it works, with a trainer that does as it is told."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import termios
from pathlib import Path

import pytest
from a_run_here import RunHere
from cluster.client import PATIENCE
from cluster_jobs import wait_until
from rlhf_cli.failures import Failure
from rlhf_cli.run_folder import RunFolder
from rlhf_cli.targets.directory_delete import delete
from synthetic_run import write_run
from test_local import IMAGE, Bench, alive


class Told(RunHere):
    """A run whose trainers end at once, but for those that are told otherwise."""

    def __init__(self, bench: Bench) -> None:
        path = os.pathsep.join(filter(None, [str(IMAGE), os.environ.get("PYTHONPATH", "")]))
        fake = {"PYTHONPATH": path, "FAKE_BEHAVIOUR": str(bench.behaviour)}
        super().__init__(bench.path, {**os.environ, **fake})
        self.bench = bench
        (bench.path / "job.yaml").write_text(json.dumps(bench.manifest()))

    def train(self, stage: str, **act: object) -> subprocess.Popen[str]:
        """`rlhfctl run` in its own terminal, up to where this stage trains, for ten minutes."""
        self.bench.behave({f"{stage}/1": {"sleep": 600, **act}})
        process = self.start("run", "job.yaml", "--dir", "run")
        wait_until(lambda: stage in self.bench.stages())
        wait_until(lambda: self.stage(stage).get("phase") == "Running")
        return process


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(Bench(tmp_path))


def test_ctrl_c_is_an_interruption_and_no_suspension(told: Told) -> None:
    process = told.train("sft")
    process.send_signal(signal.SIGINT)
    said = told.finish(process, 130)
    assert "the trainers save their state first" in said
    assert "rlhfctl run job.yaml --dir run" in said
    assert told.condition("Suspended") == ("True", "Interrupted")
    assert told.stage("sft")["reason"] == "Interrupted"
    assert told.stage("sft")["ended"]["exitCode"] == 143
    assert "was interrupted" in told.here("events")
    assert "spec.suspend" not in told.here("describe")
    assert "let it go on:  rlhfctl resume --dir run" in told.here("describe")
    assert "Report:" in told.here("resume")
    assert told.stage("sft")["attempt"] == 2


def test_what_is_changed_is_told_by_its_name_alone_where_that_is_asked_for(told: Told) -> None:
    process = told.train("sft")
    for verb in ("suspend", "cancel", "resume", "delete"):
        changer = told.start(verb, "--dir", "run", "-o", "name")
        out, _ = changer.communicate(timeout=PATIENCE)
        assert (out, changer.returncode) == ("rlhfjob.rlhf.dev/tiny\n", 0)
    process.communicate(timeout=PATIENCE)


def test_a_look_at_a_run_that_was_killed_changes_nothing(told: Told) -> None:
    process = told.train("sft", child=True)
    wait_until(told.bench.behaviour.with_suffix(".child").exists)
    child = int(told.bench.behaviour.with_suffix(".child").read_text())
    shim = json.loads((told.directory / "pods/tiny-sft-1-0/process.json").read_text())["pid"]
    process.send_signal(signal.SIGSTOP)  # or it would clear up after its supervisor
    os.kill(shim, signal.SIGKILL)
    process.kill()
    process.communicate()
    before = files(told.directory)
    for words in (["describe"], ["get"], ["get", "-w"], ["status"], ["logs"], ["logs", "-f"]):
        told.here(*words)
    assert "Running" in told.here("describe")
    said = told.here("status"), told.here("describe"), told.here("watch", code=75)
    for text in said:
        assert "no process works on it any more" in text
        assert "rlhfctl resume --dir run" in text
    assert files(told.directory) == before
    assert alive(child)
    told.here("resume")
    assert not alive(child)


def files(directory: Path) -> dict[Path, tuple[int, int]]:
    found = [path for path in directory.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def test_a_watch_in_a_terminal_shows_it_live_until_ctrl_c(told: Told) -> None:
    process = told.train("sft")
    screen, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    watcher = told.start("watch", "--dir", "run", stdout=terminal)
    os.close(terminal)
    seen = ""
    while "sft attempt 1: 1 Running" not in seen:
        seen += os.read(screen, 1 << 16).decode("utf-8", "replace")
    assert "tiny" in seen
    assert "StageStarted" in seen
    watcher.send_signal(signal.SIGINT)
    assert watcher.wait(PATIENCE) == 130
    assert watcher.stderr
    assert watcher.stderr.read() == ""
    os.close(screen)
    told.here("cancel", "--now")
    process.communicate()


def test_suspend_twice_saves_all_the_same(told: Told) -> None:
    process = told.train("sft")
    both = [told.start("suspend", "--dir", "run") for _ in range(2)]
    assert all("resume --dir run" in told.finish(one) for one in both)
    told.here("suspend", "--wait", "--timeout", f"{PATIENCE:g}s")
    told.finish(process, 143)
    assert told.stage("sft")["ended"]["exitCode"] == 143
    assert "Nothing runs in run" in told.here("suspend")


def test_cancel_waits_until_it_has_saved(told: Told) -> None:
    process = told.train("sft")
    said = told.here("cancel")
    assert "tiny is stopped; its results and checkpoints are kept." in said
    assert "rlhfctl delete --dir run" in said
    told.finish(process, 143)
    assert told.stage("sft")["ended"]["exitCode"] == 143


def test_cancel_now_waits_for_nobody(told: Told) -> None:
    process = told.train("sft", ignore_term=True)
    told.here("cancel", "--now", "--timeout", f"{PATIENCE:g}s")
    told.finish(process, 143)
    assert told.stage("sft")["ended"]["kind"] == "Disruption"
    assert not alive(told.bench.started()[-1]["pid"])


def test_one_run_has_a_directory_for_itself(told: Told) -> None:
    process = told.train("sft")
    for verb in ("resume", "retry"):
        told.here(verb, code=64 if verb == "retry" else 75)
    assert "Another run is using" in told.rlhfctl("run", "job.yaml", "--dir", "run", code=64)
    assert "rlhfctl cancel --dir run" in told.here("delete", code=75)
    assert process.poll() is None
    data = told.directory / "volumes/datasets/rows.jsonl"
    data.parent.mkdir()
    data.write_text("mine")
    said = told.here("delete", "--force", "--checkpoints", "--yes")
    assert "is deleted, with its checkpoints" in said
    assert "datasets stays" in said
    process.communicate(timeout=PATIENCE)
    assert sorted(path.name for path in told.directory.rglob("*")) == [
        *("datasets", "rows.jsonl", "volumes")
    ]
    assert (told.folder / "sft.jsonl").exists()


def test_delete_keeps_checkpoints_unless_they_are_named_and_follows_no_link(told: Told) -> None:
    told.rlhfctl("run", "job.yaml", "--dir", "run")
    volume = told.directory / "volumes/tiny-checkpoints"
    elsewhere = told.folder / "large-disk"
    volume.rename(elsewhere)
    volume.symlink_to(elsewhere)
    assert "is a link" in told.here("delete", "--checkpoints", "--yes", code=64)
    assert "add --yes" in told.here("delete", "--checkpoints", code=64)
    (told.directory / "notes.txt").write_text("mine")
    assert "Its checkpoints stay in run/volumes/tiny-checkpoints" in told.here("delete")
    assert {path.name for path in told.directory.iterdir()} == {"notes.txt", "volumes"}
    assert list(elsewhere.rglob("manifest.json"))


def test_what_cannot_be_deleted_is_told_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(tree: Path) -> None:
        raise PermissionError(13, "Permission denied", "log.txt")

    write_run(tmp_path)
    (tmp_path / "pods/a").mkdir(parents=True)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    folder = RunFolder(tmp_path)
    with pytest.raises(Failure, match=r"pods cannot be removed: log\.txt: Perm") as told:
        delete(folder, folder.job(), False)
    assert told.value.exit_code == 74
    assert folder.job()


def test_checkpoints_in_a_claim_of_somebody_else_are_not_deleted(told: Told) -> None:
    manifest = told.bench.manifest()
    manifest["spec"]["checkpoints"] = {"existingClaim": "shared"}
    (told.folder / "job.yaml").write_text(json.dumps(manifest))
    told.rlhfctl("run", "job.yaml", "--dir", "run")
    said = told.here("delete", "--checkpoints", "--yes", code=64)
    assert "the claim shared, which it did not make" in said
    assert (told.directory / "status.yaml").exists()


def test_a_stage_that_failed_is_tried_again(told: Told) -> None:
    told.bench.behave({"sft/1": {"exit": 64}})
    said = told.rlhfctl("run", "job.yaml", "--dir", "run", code=64)
    assert "told to exit 64" in said
    assert "once that is mended:  rlhfctl retry --dir run" in told.here("describe")
    assert "ppo of tiny has not failed" in told.here("retry", "--stage", "ppo", code=64)
    assert "Report:" in told.here("retry", "--stage", "sft")
    assert told.stage("sft")["attempt"] == 2
    assert "no stage of tiny has failed" in told.here("retry", code=64)
