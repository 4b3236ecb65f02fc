"""Checkpoints: what is committed is whole; what is damaged or foreign is passed over."""

from __future__ import annotations

import hashlib
import json
import random
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_curve import curve, make_engine, weights
from rlhf_trainer.checkpoints import vouched
from rlhf_trainer.checkpoints.checkpoint import Checkpointer
from rlhf_trainer.checkpoints.disk import Sharing, open_disk
from rlhf_trainer.checkpoints.vouched import verify, verify_inputs
from rlhf_trainer.errors import CheckpointUnusable, Transient
from rlhf_trainer.models.language_models import input_of
from rlhf_trainer.ranks import Ranks
from trainer_pod import Pod

SFT = {"data": {"source": "unused"}}


def checkpointer(pod: Pod, ranks: Ranks, attempt: int = 1, keep: int = 2, **changes: Any) -> Any:
    run = pod.stage_run("sft", SFT, attempt=attempt, **changes)
    return Checkpointer(run, ranks, keep, open_disk(run, ranks))


def steps(saver: Checkpointer) -> list[int]:
    return sorted(int(p.name[5:]) for p in (saver.directory / "steps").glob("step-*"))


def test_engine_state_and_random_states_come_back(in_pod: Pod, ranks: Ranks) -> None:
    engine = make_engine(in_pod.model, ranks, 0)
    curve(engine, steps=2)
    saver = checkpointer(in_pod, ranks)
    for draw in (random.random, np.random.random, torch.rand, np.random.standard_normal):
        draw() if draw is not torch.rand else draw(1)
    saver.save(2, {"model": engine}, {"coef": 0.1, "moments": torch.ones(2)}, best=None)
    drawn = (random.random(), np.random.standard_normal(), torch.rand(3))
    expected = curve(engine, steps=2)

    fresh = make_engine(in_pod.model, ranks, 0)
    restored = checkpointer(in_pod, ranks, attempt=2).restore({"model": fresh})
    assert restored is not None
    assert restored.step == 2
    assert restored.state["coef"] == 0.1
    assert torch.equal(restored.state["moments"], torch.ones(2))
    again = (random.random(), np.random.standard_normal(), torch.rand(3))
    assert drawn[:2] == again[:2]
    assert torch.equal(drawn[2], again[2])
    assert curve(fresh, steps=2) == expected
    after = weights(fresh)
    assert all(torch.equal(value, after[name]) for name, value in weights(engine).items())


def test_nothing_to_restore_is_none(in_pod: Pod, ranks: Ranks) -> None:
    assert checkpointer(in_pod, ranks).restore({}) is None


def truncate(directory: Path) -> None:
    file = directory / "state.pt"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(directory: Path) -> None:
    file = directory / "state.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def remove_a_file(directory: Path) -> None:
    (directory / "rng-00000.pt").unlink()


def remove_the_manifest(directory: Path) -> None:
    (directory / "manifest.json").unlink()


def break_the_manifest(directory: Path) -> None:
    (directory / "manifest.json").write_text("{")


def lose_a_name_in_the_manifest(*names: str) -> Callable[[Path], None]:
    """A flipped bit in it leaves JSON that says something else."""

    def damage(directory: Path) -> None:
        manifest = directory / "manifest.json"
        for name in names:
            manifest.write_text(manifest.read_text().replace(f'"{name}"', f'"{name[:-1]}~"'))

    return damage


def change_a_number_in_the_manifest(name: str, value: int) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        manifest = directory / "manifest.json"
        text, changes = re.subn(rf'"{name}": \w+', f'"{name}": {value}', manifest.read_text())
        assert changes == 1
        manifest.write_text(text)

    return damage


def add_a_file(directory: Path) -> None:
    (directory / "model").mkdir()
    (directory / "model" / "zero_optim_states.pt").write_bytes(b"nobody vouches for it")


def make_foreign(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["lineage"]["job"] = "another"
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "bytes, expected"),
        (flip_a_bit, "damaged"),
        (remove_a_file, "missing"),
        (remove_the_manifest, "has no manifest.json"),
        (break_the_manifest, "damaged"),
        (lose_a_name_in_the_manifest("sha256"), "damaged"),
        (lose_a_name_in_the_manifest("size"), "damaged"),
        (lose_a_name_in_the_manifest("files"), "damaged"),
        (lose_a_name_in_the_manifest("worldSize"), "damaged: without worldSize"),
        (change_a_number_in_the_manifest("worldSize", 0), "not what was written"),
        (change_a_number_in_the_manifest("best", 3), "not what was written"),
        (add_a_file, "zero_optim_states.pt is not in the manifest.json"),
        (make_foreign, "another lineage"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_passed_over_with_the_reason(
    damage: Callable[[Path], None],
    reason: str,
    in_pod: Pod,
    ranks: Ranks,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import logging

    monkeypatch.setattr(logging.getLogger("rlhf_trainer"), "propagate", True)
    saver = checkpointer(in_pod, ranks)
    for step in (1, 2):
        saver.save(step, {}, {"step": step})
    damage(saver.directory / "steps" / "step-00000002")
    restored = checkpointer(in_pod, ranks, attempt=2).restore({})
    assert restored is not None
    assert restored.state == {"step": 1}
    assert "passing over" in caplog.text
    assert reason in caplog.text


def test_a_checkpoint_of_a_trainer_that_sealed_none_is_restored(in_pod: Pod, ranks: Ranks) -> None:
    saver = checkpointer(in_pod, ranks)
    saver.save(1, {}, {"step": 1})
    file = saver.directory / "steps" / "step-00000001" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["seal"]
    file.write_text(json.dumps(manifest))
    restored = checkpointer(in_pod, ranks, attempt=2).restore({})
    assert restored is not None
    assert restored.step == 1


def test_a_half_written_checkpoint_is_never_seen(
    in_pod: Pod, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = checkpointer(in_pod, ranks)
    saver.save(1, {}, {"step": 1})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(Transient, match="No space left on device"):
            saver.save(2, {}, {"step": 2})
    assert steps(saver) == [1]
    restored = saver.restore({})
    assert restored is not None
    assert restored.step == 1
    saver.save(2, {}, {"step": 2})
    assert steps(saver) == [1, 2]


def test_a_full_disk_is_said_whatever_the_library_says_that_wrote(
    in_pod: Pod, ranks: Ranks
) -> None:
    """torch and safetensors have errors of their own for it, which are no OSError."""
    from safetensors.torch import save_file

    tensors = {"a": torch.zeros(1 << 20)}
    saver = checkpointer(in_pod, ranks)
    writes = (
        lambda directory: torch.save(tensors, directory / "state.pt"),
        lambda directory: save_file(tensors, directory / "model.safetensors"),
    )
    for write in writes:
        with files_no_larger_than(1 << 19), pytest.raises(Transient, match="File too large"):
            saver.keep_weights(1, write)
        assert saver.kept_weights(1) is None

    def mistaken(_: Path) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        saver.keep_weights(1, mistaken)


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """To a library that writes a file, this limit is what a full disk is."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def test_the_newest_step_over_all_attempts_up_to_ours_is_taken(in_pod: Pod, ranks: Ranks) -> None:
    for attempt, step in ((1, 5), (2, 7), (3, 6), (4, 9)):
        checkpointer(in_pod, ranks, attempt, keep=9).save(step, {}, {"attempt": attempt})
    restored = checkpointer(in_pod, ranks, attempt=3).restore({})
    assert restored is not None
    assert (restored.step, restored.state["attempt"]) == (7, 2)


def test_old_checkpoints_go_and_the_newest_stay_over_attempts(in_pod: Pod, ranks: Ranks) -> None:
    first, second = (checkpointer(in_pod, ranks, attempt, keep=2) for attempt in (1, 2))
    for step in (1, 2, 3):
        first.save(step, {}, {})
    assert steps(first) == [2, 3]
    second.save(4, {}, {})
    assert (steps(first), steps(second)) == ([3], [4])


@pytest.mark.parametrize("keep", [1, 2])
def test_what_is_saved_after_a_damaged_newer_checkpoint_stays(
    in_pod: Pod, ranks: Ranks, keep: int
) -> None:
    first = checkpointer(in_pod, ranks, keep=4)
    for step in (1, 7, 8, 9):
        first.save(step, {}, {})
    for step in (7, 8, 9):
        flip_a_bit(first.directory / "steps" / f"step-{step:08d}")
    second = checkpointer(in_pod, ranks, attempt=2, keep=keep)
    assert second.restore({}).step == 1
    for step in (2, 3, 4):
        second.save(step, {}, {})
    assert steps(second) == [2, 3, 4][-keep:]
    assert checkpointer(in_pod, ranks, attempt=3).restore({}).step == 4
    second.save(10, {}, {})
    second.save(11, {}, {})
    assert steps(first) == []
    assert steps(second) == [10, 11][-keep:]


def test_a_damaged_checkpoint_whose_step_is_saved_again_counts(in_pod: Pod, ranks: Ranks) -> None:
    """As after a roll-back."""
    saver = checkpointer(in_pod, ranks, keep=1)
    saver.save(2, {}, {})
    flip_a_bit(saver.directory / "steps" / "step-00000002")
    assert saver.restore({}) is None
    saver.save(1, {}, {})
    saver.save(2, {}, {})
    assert steps(saver) == [2]


def test_best_weights_stay_while_a_checkpoint_names_them(in_pod: Pod, ranks: Ranks) -> None:
    saver = checkpointer(in_pod, ranks, keep=1)

    def write(directory: Path) -> None:
        (directory / "weights").write_text("w")

    saver.keep_weights(2, write)
    saver.save(3, {}, {}, best=2)
    saver.keep_weights(4, write)  # a kill now would resume from 3, whose best is still 2
    later = checkpointer(in_pod, ranks, attempt=2)
    assert later.kept_weights(2) is not None
    saver.save(5, {}, {}, best=4)
    assert later.kept_weights(2) is None
    kept = later.kept_weights(4)
    assert kept is not None
    (kept / "weights").write_text("x")
    assert later.kept_weights(4) is None


def test_the_same_step_may_be_saved_again(in_pod: Pod, ranks: Ranks) -> None:
    saver = checkpointer(in_pod, ranks)
    saver.save(1, {}, {"take": 1})
    saver.save(1, {}, {"take": 2})
    restored = saver.restore({})
    assert restored is not None
    assert restored.state == {"take": 2}
    assert [p.name for p in (saver.directory / "steps").iterdir()] == ["step-00000001"]


def write_output(directory: Path) -> None:
    (directory / "config.json").write_text("{}")


def test_once_the_output_is_committed_the_newest_checkpoint_alone_stays(
    in_pod: Pod, ranks: Ranks
) -> None:
    saver = checkpointer(in_pod, ranks, keep=3)
    for step in (1, 2, 3):
        saver.keep_weights(step, write_output)
        saver.save(step, {}, {"step": step}, best=step)
    saver.commit_output(write_output)
    assert steps(saver) == [3]
    assert [p.name for p in (saver.directory / "best").iterdir()] == ["step-00000003"]
    restored = checkpointer(in_pod, ranks, attempt=2).restore({})  # its end was not heard of
    assert restored is not None
    assert restored.state == {"step": 3}


def test_output_has_a_digest_that_others_can_verify(in_pod: Pod, ranks: Ranks) -> None:
    saver = checkpointer(in_pod, ranks)
    metrics = {"eval/loss": 1.5, "train/tokens_per_second": 123.4, "time/update": 3.0}
    metrics |= {"memory/update": 0.5}
    ref = saver.commit_output(write_output, metrics)
    assert ref.uri == "job/sft-0123456789ab/attempt-1/output"
    directory = Path("checkpoints") / ref.uri
    assert verify(directory, ref.digest)["metrics"] == {"eval/loss": 1.5}
    with pytest.raises(CheckpointUnusable, match="expected sha256:0"):
        verify(directory, "sha256:0")
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointUnusable, match=r"adapter_config\.json is not in"):
        verify(directory, ref.digest)
    (directory / "adapter_config.json").rename(directory / ".nfs0001")  # still open elsewhere
    verify(directory, ref.digest)
    (directory / "config.json").write_text("[]")
    with pytest.raises(CheckpointUnusable, match="SHA-256"):
        verify(directory, ref.digest)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read whole."""
    found: list[str] = []

    def sha256_of(path: Path) -> str:
        found.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(vouched, "sha256_of", sha256_of)
    return found


def test_an_input_that_is_loaded_again_is_read_again_only_if_it_has_changed(
    in_pod: Pod, ranks: Ranks, read: list[str]
) -> None:
    ref = checkpointer(in_pod, ranks).commit_output(write_output)
    directory = Path("checkpoints") / ref.uri
    inputs = {"policy": {"path": str(directory), "digest": ref.digest}}
    run = in_pod.stage_run("reward", SFT, inputs=inputs)
    read.clear()
    input_of(run, "policy")
    assert "config.json" in read
    read.clear()
    input_of(run, "policy")
    assert read == []
    (directory / "config.json").write_text("[]")
    with pytest.raises(CheckpointUnusable, match=r"config\.json"):
        input_of(run, "policy")


def test_ranks_share_the_files_of_an_input_and_read_none_of_them_twice(
    in_pod: Pod, ranks: Ranks, read: list[str]
) -> None:
    shards = [f"{number}.safetensors" for number in range(5)]

    def write(directory: Path) -> None:
        for shard in shards:
            (directory / shard).write_text(shard)

    ref = checkpointer(in_pod, ranks).commit_output(write)
    directory = Path("checkpoints") / ref.uri
    inputs = {role: {"path": str(directory), "digest": ref.digest} for role in ("policy", "base")}
    run = in_pod.stage_run("reward", SFT, inputs=inputs)
    read.clear()
    for number in range(2):
        verify_inputs(run, ranks, Sharing(number, 2))
    assert sorted(name for name in read if name != "manifest.json") == shards
    read.clear()
    input_of(run, "policy")
    assert read == []
    (directory / shards[4]).write_text("of the same size"[: len(shards[4])])
    with pytest.raises(CheckpointUnusable, match=shards[4]):
        verify_inputs(run, ranks, Sharing(0, 2))


def test_equal_outputs_have_equal_digests(in_pod: Pod, ranks: Ranks) -> None:
    digests = []
    for speed in (1.0, 2.0):
        saver = checkpointer(in_pod, ranks)
        ref = saver.commit_output(write_output, {"train/tokens_per_second": speed})
        digests.append(ref.digest)
        shutil.rmtree(saver.directory)
    assert digests[0] == digests[1]


def test_an_output_does_not_show_on_which_attempt_or_in_which_cluster_it_was_made(
    in_pod: Pod, ranks: Ranks
) -> None:
    """Else a disruption would change what later stages start from, and so their identity."""
    job = {"name": "job", "namespace": "default"}
    digests = set()
    for attempt, uid in ((1, "uid-1"), (2, "uid-1"), (1, "uid-2")):
        saver = checkpointer(in_pod, ranks, attempt, job=job | {"uid": uid})
        digests.add(saver.commit_output(write_output, {"eval/loss": 1.5}).digest)
    assert len(digests) == 1
