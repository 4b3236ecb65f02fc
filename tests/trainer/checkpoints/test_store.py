"""An object store in place of a claim: what is committed there, kept there and brought from there.

The store is a server that speaks S3, the client the real one.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gcs_server import google_bucket
from rlhf_api.run import StageRun
from rlhf_trainer.checkpoints import store as stores
from rlhf_trainer.checkpoints.checkpoint import Checkpointer
from rlhf_trainer.checkpoints.disk import name_of, open_disk
from rlhf_trainer.checkpoints.store import ObjectStore
from rlhf_trainer.checkpoints.vouched import verify
from rlhf_trainer.data.kept import place_of
from rlhf_trainer.errors import CheckpointUnusable, ConfigurationError, TrainerError, Transient
from rlhf_trainer.prepare import prepare
from rlhf_trainer.ranks import Ranks
from s3_server import Bucket, bucket
from store_pod import STORE, on_store, write_secret
from trainer_pod import Pod, sft_rows

SFT = {"data": {"source": "unused"}}
STEPS = "team/job/sft-0123456789ab/attempt-{}/steps/step-{:08d}/{}"


@pytest.fixture
def server(in_pod: Pod) -> Iterator[Bucket]:
    with bucket({}) as running:
        write_secret(in_pod.directory, running)
        yield running


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tries, without a pause."""
    monkeypatch.setattr(stores, "PAUSES", (0.0,))


def checkpointer(pod: Pod, ranks: Ranks, attempt: int = 1, keep: int = 2) -> Checkpointer:
    run = on_store(pod.stage_run("sft", SFT, attempt=attempt))
    return Checkpointer(run, ranks, keep, open_disk(run, ranks))


def saved(server: Bucket, attempt: int = 1) -> list[int]:
    """Steps whose manifest is in the store."""
    start = f"team/job/sft-0123456789ab/attempt-{attempt}/steps/"
    found = [key.removeprefix(start).split("/") for key in server.files if key.startswith(start)]
    return sorted(int(parts[0][5:]) for parts in found if parts[1:] == ["manifest.json"])


def empty_the_disk() -> None:
    shutil.rmtree("checkpoints")


def test_a_checkpoint_comes_back_on_an_empty_disk(
    in_pod: Pod, ranks: Ranks, server: Bucket
) -> None:
    saver = checkpointer(in_pod, ranks)
    saver.save(3, {}, {"coef": 0.5})
    saver.disk.settle()
    here = {name_of(path) for path in Path("checkpoints").rglob("*") if path.is_file()}
    assert {key for key in server.files if not key.endswith("/")} == {f"team/{n}" for n in here}
    empty_the_disk()
    restored = checkpointer(in_pod, ranks, attempt=2).restore({})
    assert restored is not None
    assert (restored.step, restored.state) == (3, {"coef": 0.5})


def test_the_manifest_is_uploaded_last_and_removed_first(
    in_pod: Pod, ranks: Ranks, server: Bucket
) -> None:
    saver = checkpointer(in_pod, ranks, keep=1)
    for step in (1, 2):
        saver.save(step, {}, {})
    saver.disk.settle()
    for step in (1, 2):
        of_step = [key for key in server.put if f"step-{step:08d}" in key and key[-1] != "/"]
        assert of_step[-1] == STEPS.format(1, step, "manifest.json")
        assert len(of_step) == 3
    files = (key for key in server.put if key[-1] != "/")
    gone = [key for key in files if "step-00000001" in key and key in server.deleted]
    first = server.deleted.index(STEPS.format(1, 1, "state.pt"))
    assert STEPS.format(1, 1, "manifest.json") in server.deleted[:first]
    assert len(set(gone)) == 3
    assert saved(server) == [2]


def test_a_checkpoint_that_is_saved_again_has_no_manifest_meanwhile(
    in_pod: Pod, ranks: Ranks, server: Bucket
) -> None:
    saver = checkpointer(in_pod, ranks)
    saver.save(1, {}, {"take": 1})
    saver.disk.settle()
    manifest = STEPS.format(1, 1, "manifest.json")
    seen: list[bool] = []
    server.broken = lambda key: bool(seen.append(manifest in server.files))
    saver.save(1, {}, {"take": 2})
    saver.disk.settle()
    assert seen
    assert not any(seen)
    empty_the_disk()
    restored = checkpointer(in_pod, ranks, attempt=2).restore({})
    assert restored is not None
    assert restored.state == {"take": 2}


def remove_the_manifest(server: Bucket) -> None:
    del server.files[STEPS.format(1, 2, "manifest.json")]


def remove_a_file(server: Bucket) -> None:
    del server.files[STEPS.format(1, 2, "state.pt")]


def truncate(server: Bucket) -> None:
    key = STEPS.format(1, 2, "state.pt")
    server.files[key] = server.files[key][:-1]


def flip_a_bit(server: Bucket) -> None:
    key = STEPS.format(1, 2, "state.pt")
    data = bytearray(server.files[key])
    data[len(data) // 2] ^= 1
    server.files[key] = bytes(data)


@pytest.mark.parametrize("damage", [remove_the_manifest, remove_a_file, truncate, flip_a_bit])
def test_a_torn_or_damaged_checkpoint_gives_way_to_the_one_before(
    damage: Any, in_pod: Pod, ranks: Ranks, server: Bucket
) -> None:
    saver = checkpointer(in_pod, ranks)
    for step in (1, 2):
        saver.save(step, {}, {"step": step})
    saver.disk.settle()
    damage(server)
    empty_the_disk()
    restored = checkpointer(in_pod, ranks, attempt=2).restore({})
    assert restored is not None
    assert restored.state == {"step": 1}


def test_retention_is_that_of_a_claim(in_pod: Pod, ranks: Ranks, server: Bucket) -> None:
    first = checkpointer(in_pod, ranks, 1)
    for step in (1, 2, 3):
        first.save(step, {}, {})
    first.disk.settle()
    assert saved(server, 1) == [2, 3]
    empty_the_disk()
    second = checkpointer(in_pod, ranks, 2)
    assert second.restore({}) is not None
    second.save(4, {}, {})
    second.disk.settle()
    assert (saved(server, 1), saved(server, 2)) == ([3], [4])


def test_an_attempt_that_was_given_up_deletes_nothing_of_a_newer_one(
    in_pod: Pod, ranks: Ranks, server: Bucket
) -> None:
    old, new = checkpointer(in_pod, ranks, 1, keep=1), checkpointer(in_pod, ranks, 2, keep=1)
    new.save(5, {}, {})
    new.disk.settle()
    before = {key: server.files[key] for key in server.files if "attempt-2" in key}
    for step in (6, 7):
        old.save(step, {}, {})
    old.disk.settle()
    assert {key: server.files[key] for key in server.files if "attempt-2" in key} == before


def test_best_weights_stay_while_a_checkpoint_names_them(
    in_pod: Pod, ranks: Ranks, server: Bucket
) -> None:
    saver = checkpointer(in_pod, ranks, keep=1)

    def write(directory: Path) -> None:
        (directory / "weights").write_text("w")

    saver.keep_weights(2, write)
    saver.save(3, {}, {}, best=2)
    saver.keep_weights(4, write)
    saver.disk.settle()
    empty_the_disk()
    kept = checkpointer(in_pod, ranks, 2).kept_weights(2)
    assert kept is not None
    assert (kept / "weights").read_text() == "w"
    saver.save(5, {}, {}, best=4)
    saver.disk.settle()
    best = [key for key in server.files if "/best/step" in key and not key.endswith("/")]
    assert {key.split("/")[5] for key in best} == {"step-00000004"}


def test_an_output_is_named_by_its_address_and_has_the_digest_that_a_claim_gives(
    in_pod: Pod, ranks: Ranks, server: Bucket
) -> None:
    def write(directory: Path) -> None:
        (directory / "config.json").write_text("{}")

    ref = checkpointer(in_pod, ranks).commit_output(write, {"eval/loss": 1.5})
    assert ref.uri == f"{STORE}/job/sft-0123456789ab/attempt-1/output"
    empty_the_disk()
    on_claim = in_pod.stage_run("sft", SFT)
    saver = Checkpointer(on_claim, ranks, 2, open_disk(on_claim, ranks))
    assert saver.commit_output(write, {"eval/loss": 1.5}).digest == ref.digest


def with_inputs(pod: Pod, **changes: Any) -> StageRun:
    output = "checkpoints/job/sft-1/attempt-1/output"
    return on_store(
        pod.stage_run(
            "reward",
            {"data": {"source": "s3://data/pairs"}},
            inputs={"base": {"path": "checkpoints/sources/aa"}, "policy": {"path": output}},
            paths={
                "hf://o/m": "checkpoints/sources/aa",
                "s3://data/pairs": "checkpoints/sources/bb",
            },
            **changes,
        )
    )


INPUTS = {
    "team/sources/aa/config.json": b"{}",
    "team/sources/aa/fetched.json": b"{}",
    "team/sources/bb/rows.jsonl": b"{}",
    "team/sources/bb/fetched.json": b"{}",
    "team/job/sft-1/attempt-1/output/model.safetensors": b"w" * 1000,
    "team/job/sft-1/attempt-1/output/manifest.json": b"{}",
    "team/job/sft-1/attempt-1/steps/step-00000001/state.pt": b"not asked for",
    "team/sources/aab/config.json": b"a neighbour",
}


def test_a_stage_gets_what_it_reads_and_nothing_else(
    in_pod: Pod, ranks: Ranks, server: Bucket
) -> None:
    server.files |= INPUTS
    run = with_inputs(in_pod)
    open_disk(run, ranks).bring_inputs(run)
    here = {name_of(path) for path in Path("checkpoints").rglob("*") if path.is_file()}
    assert here == {key.removeprefix("team/") for key in list(INPUTS)[:6]}


def test_rows_that_prepare_has_encoded_come_on_an_empty_disk(
    in_pod: Pod, ranks: Ranks, server: Bucket
) -> None:
    settings = {"data": {"source": in_pod.data("sft", sft_rows())}}
    run = on_store(in_pod.stage_run("sft", settings))
    prepare(run.model_copy(update={"stage": "prepare"}))
    path = place_of(run, "stages.sft.data")
    written = path.read_bytes()
    assert server.files["team/job/rows/stages.sft.data/encoded"] == written
    empty_the_disk()
    disk = open_disk(run, ranks)
    disk.bring_spare(path)
    assert path.read_bytes() == written
    del server.files["team/job/rows/stages.sft.data/encoded"]
    disk.keep_spare(path)  # by a stage that made them itself
    disk.settle()
    assert server.files["team/job/rows/stages.sft.data/encoded"] == written


def test_encoded_rows_that_a_store_does_not_give_or_take_stop_no_stage(
    in_pod: Pod, ranks: Ranks, server: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    run = on_store(in_pod.stage_run("sft", SFT))
    disk, path = open_disk(run, ranks), place_of(run, "stages.sft.data")
    server.files["team/job/rows/stages.sft.data/encoded"] = b"rows"
    server.shut = lambda key: "encoded" in key
    disk.bring_spare(path)
    path.write_bytes(b"rows")
    disk.keep_spare(path)
    disk.settle()
    assert "is not brought here" in caplog.text
    assert "is not kept" in caplog.text


@pytest.mark.parametrize(
    ("gone", "kind", "said"),
    [
        (
            "sources/bb/fetched.json",
            ConfigurationError,
            r"sources/bb is not there.*rlhf.dev/refresh",
        ),
        ("job/sft-1/attempt-1/output", CheckpointUnusable, "output is not there"),
    ],
)
def test_what_was_deleted_from_the_store_is_named(
    gone: str, kind: Any, said: str, in_pod: Pod, ranks: Ranks, server: Bucket
) -> None:
    server.files |= {key: text for key, text in INPUTS.items() if gone not in key}
    run = with_inputs(in_pod)
    with pytest.raises(kind, match=f"{STORE}/.*{said}"):
        open_disk(run, ranks).bring_inputs(run)


def test_a_store_that_fails_for_a_moment_is_tried_again(
    in_pod: Pod, server: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "PAUSES", (0.0,) * 5)
    failures = iter([True] * 9)  # the SDK itself tries some times
    server.broken = lambda key: next(failures, False)
    ObjectStore(STORE, "store").write("a", b"1")
    assert server.files["team/a"] == b"1"


def test_a_small_file_takes_a_request_and_a_folder_goes_with_a_few(
    in_pod: Pod, server: Bucket
) -> None:
    """Requests are paid for, and of others of the same store a second has thousands at most."""
    Path("small").write_bytes(b"1")
    store = ObjectStore(STORE, "store")
    store.put({f"folder/{i}": Path("small") for i in range(20)})
    assert server.requests == ["PUT"] * 20
    server.requests.clear()
    store.remove_folder("folder", "0")
    assert len(server.requests) < 10
    assert not store.sizes("")
    store.remove_folder("folder", "0")  # nothing is there


def test_a_store_that_deletes_one_file_at_a_time_is_asked_for_each(
    in_pod: Pod, server: Bucket
) -> None:
    store = ObjectStore(STORE, "store")
    for name in ("folder/0", "folder/1", "other"):
        store.write(name, b"1")
    server.broken = lambda key: not key
    store.remove_folder("folder", "0")
    assert [*store.sizes("")] == ["other"]


def stop_at_once(store: ObjectStore, server: Bucket) -> None:
    store.stop()


def stop_after_a_part(store: ObjectStore, server: Bucket) -> None:
    server.broken = lambda key: bool(store.stop())


def refuse_after_a_part(store: ObjectStore, server: Bucket) -> None:
    server.broken = lambda key: bool(server.refuse.add(key))


@pytest.mark.parametrize("cut", [stop_at_once, stop_after_a_part, refuse_after_a_part])
def test_an_upload_that_is_cut_leaves_what_the_store_had(
    cut: Any, in_pod: Pod, server: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "PIECE", 6 << 20)  # pyarrow sends ten MiB at once
    store = ObjectStore(STORE, "store")
    store.write("metrics", b"whole")
    Path("metrics").write_bytes(bytes(24 << 20))
    cut(store, server)
    with pytest.raises(TrainerError):
        store.put({"metrics": Path("metrics")})
    gc.collect()
    assert server.files == {"team/metrics": b"whole"}


@pytest.mark.usefixtures("impatient")
def test_an_upload_that_keeps_failing_fails_the_next_save(
    in_pod: Pod, ranks: Ranks, server: Bucket
) -> None:
    saver = checkpointer(in_pod, ranks)
    server.broken = lambda key: "step-00000001/state.pt" in key
    saver.save(1, {}, {})
    with pytest.raises(Transient, match=rf"{STORE}/job.*state\.pt cannot be reached: .*SLOW_DOWN"):
        saver.save(2, {}, {})
    assert saved(server) == []


@pytest.mark.usefixtures("impatient")
def test_a_store_that_is_not_there_is_worth_another_attempt(in_pod: Pod, server: Bucket) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(Transient, match=f"{STORE}/a cannot be reached: "):
        ObjectStore(STORE, "store").write("a", b"1")


def test_refused_credentials_are_final_and_say_what_is_needed(in_pod: Pod, server: Bucket) -> None:
    server.access_key = "ANOTHER"
    store = ObjectStore(STORE, "store")
    said = f"do not give access to {STORE}/a: Secret store has to be allowed to list, read, write"
    for ask in (lambda: store.write("a", b""), lambda: store.read("a"), lambda: store.sizes("a")):
        with pytest.raises(ConfigurationError, match=said):
            ask()


def test_a_bucket_that_does_not_exist_is_named(in_pod: Pod, server: Bucket) -> None:
    with pytest.raises(ConfigurationError, match="s3://other/a: there is no such bucket"):
        ObjectStore("s3://other", "store").write("a", b"1")


@pytest.mark.parametrize("name", ["x/../../harm", "x/../../../harm", "/harm"])
def test_a_key_that_leads_out_of_the_store_is_refused(
    in_pod: Pod, server: Bucket, name: str
) -> None:
    """Also on the machine of whoever fetches a checkpoint."""
    store = ObjectStore(STORE, "store")
    with pytest.raises(ConfigurationError, match="leads out of its folder"):
        store.bring({"x/whole": 1, name: 1}, in_pod.directory / "copy")
    assert not (in_pod.directory / "copy").exists()


def test_google_cloud_storage_keeps_checkpoints_too(
    in_pod: Pod, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "none")  # put back after the test
    with google_bucket({}) as server:
        monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", server.url)
        folder = in_pod.directory / "secrets" / "store"
        folder.mkdir(parents=True)
        (folder / "credentials.json").write_text(server.credentials())

        def saver(attempt: int) -> Checkpointer:
            run = on_store(in_pod.stage_run("sft", SFT, attempt=attempt), "gs://bucket/team")
            return Checkpointer(run, ranks, 1, open_disk(run, ranks))

        first = saver(1)
        for step in (1, 2):
            first.save(step, {}, {"step": step})
        first.disk.settle()
        assert not [key for key in server.files if "step-00000001" in key and key[-1] != "/"]
        empty_the_disk()
        restored = saver(2).restore({})
        assert restored is not None
        assert restored.state == {"step": 2}
        with pytest.raises(CheckpointUnusable):
            verify(Path("checkpoints"))
