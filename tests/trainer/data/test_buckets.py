"""Sources in buckets, and the credentials of every remote source, with the real clients."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from gcs_server import google_bucket
from rlhf_api.data import DataSource, ModelSource
from rlhf_trainer.data import fetched
from rlhf_trainer.data.load import load_dialogues
from rlhf_trainer.errors import ConfigurationError, Transient
from s3_server import Bucket, bucket

ROWS = b'{"prompt": "q", "answer": "a"}\n' * 3
MODEL = {
    "team/base/config.json": b"{}",
    "team/base/weights/a.safetensors": b"w" * 100_000,
    "team/based.json": b"another",
}


@pytest.fixture(autouse=True)
def _pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory, and nothing of this machine's own credentials."""
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "none")  # put back after the test
    for name in (
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)


def secret(server: Bucket, name: str = "s3", **changes: str) -> None:
    """The Secret as a pod sees it: a folder of files."""
    keys = {
        "AWS_ACCESS_KEY_ID": "KEY",
        "AWS_SECRET_ACCESS_KEY": "SECRET",
        "AWS_ENDPOINT_URL": server.url,
        "AWS_REGION": "us-east-1",
        **changes,
    }
    folder = Path("secrets", name)
    folder.mkdir(parents=True, exist_ok=True)
    for key, value in keys.items():
        (folder / key).write_text(value + "\n")


def model(source: str = "s3://bucket/team/base") -> ModelSource:
    return ModelSource(source=source, secret="s3")


TARGET = Path("checkpoints/sources/abc")


def test_a_folder_of_a_bucket_is_copied_once_and_no_neighbour_of_it() -> None:
    with bucket(MODEL) as server:
        secret(server)
        fetched.fetch_model(model(), model().source, TARGET)
        assert (TARGET / "weights/a.safetensors").read_bytes() == b"w" * 100_000
        found = {p.relative_to(TARGET).as_posix() for p in TARGET.rglob("*") if p.is_file()}
        assert found == {"config.json", "weights/a.safetensors", "fetched.json"}
        read = list(server.asked)
        fetched.fetch_model(model(), model().source, TARGET)
        assert server.asked == read


def test_a_source_is_on_the_disk_before_it_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a node that loses power leaves weights that are whole by their names alone."""
    synced: list[str] = []
    names_before = []
    fsync, rename = os.fsync, Path.rename

    def record(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def look(path: Path, target: Path) -> Path:
        if target == TARGET:
            names_before.extend(synced)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(Path, "rename", look)
    with bucket(MODEL) as server:
        secret(server)
        fetched.fetch_model(model(), model().source, TARGET)
    assert {"config.json", "a.safetensors", "fetched.json", "weights"} <= set(names_before)
    assert synced[-1] == TARGET.parent.name


def test_a_single_key_is_a_data_set() -> None:
    with bucket({"data/sft.jsonl": ROWS}) as server:
        secret(server)
        uri = "s3://bucket/data/sft.jsonl"
        source = DataSource(source=uri, secret="s3", eval_fraction=0.0)
        fetched.fetch_data(source, uri, TARGET)
        assert len(load_dialogues(source, {uri: str(TARGET)}, 1).train) == 3


def test_a_second_try_fetches_only_what_the_first_one_did_not() -> None:
    with bucket(MODEL) as server:
        secret(server)
        server.refuse = {"team/base/config.json"}
        with pytest.raises(Transient, match="cannot be fetched now"):
            fetched.fetch_model(model(), model().source, TARGET)
        assert not TARGET.exists()
        server.refuse, server.asked = set(), []
        fetched.fetch_model(model(), model().source, TARGET)
        assert set(server.asked) == {"team/base/config.json"}
        assert (TARGET / "weights/a.safetensors").read_bytes() == b"w" * 100_000


def test_what_changed_since_the_first_try_is_fetched_again() -> None:
    with bucket(dict(MODEL)) as server:
        secret(server)
        server.refuse = {"team/base/config.json"}
        with pytest.raises(Transient):
            fetched.fetch_model(model(), model().source, TARGET)
        server.refuse = set()
        server.files["team/base/weights/a.safetensors"] = b"v" * 100_001
        fetched.fetch_model(model(), model().source, TARGET)
        assert (TARGET / "weights/a.safetensors").read_bytes() == b"v" * 100_001


GOOGLE = ModelSource(source="gs://bucket/team/base", secret="google")


def google_secret(text: str) -> None:
    Path("secrets/google").mkdir(parents=True, exist_ok=True)
    Path("secrets/google/credentials.json").write_text(text)


def test_google_cloud_storage_is_read_with_the_secrets_credentials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with google_bucket(MODEL) as server:
        monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", server.url)
        google_secret(server.credentials())
        fetched.fetch_model(GOOGLE, GOOGLE.source, TARGET)
        assert (TARGET / "weights/a.safetensors").read_bytes() == b"w" * 100_000
        assert not (TARGET / "based.json").exists()
        absent = GOOGLE.model_copy(update={"source": "gs://bucket/none"})
        with pytest.raises(ConfigurationError, match="there is nothing at gs://bucket/none"):
            fetched.fetch_model(absent, absent.source, TARGET.with_name("none"))


def test_a_key_that_leads_out_of_its_folder_is_refused_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with google_bucket({**MODEL, "team/base/../../../../.profile": b"harm"}) as server:
        monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", server.url)
        google_secret(server.credentials())
        with pytest.raises(ConfigurationError, match=r"leads out of its folder, .*profile"):
            fetched.fetch_model(GOOGLE, GOOGLE.source, TARGET)
    assert not list(Path().glob("../**/.profile"))


def test_credentials_that_google_refuses_are_final(monkeypatch: pytest.MonkeyPatch) -> None:
    with google_bucket(MODEL) as server:
        monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", server.url)
        google_secret(server.credentials("expired"))
        with pytest.raises(ConfigurationError, match="credentials do not give access"):
            fetched.fetch_model(GOOGLE, GOOGLE.source, TARGET)


@pytest.mark.parametrize(
    "uri", ["s3://bucket/team/none", "s3://bucket/team/bas", "s3://other/team/base"]
)
def test_what_is_not_there_is_final(uri: str) -> None:
    with bucket(MODEL) as server:
        secret(server)
        with pytest.raises(ConfigurationError, match=f"there is nothing at {uri}"):
            fetched.fetch_model(model(uri), uri, TARGET)


def test_credentials_that_do_not_open_the_bucket_are_final() -> None:
    with bucket(MODEL) as server:
        secret(server, AWS_ACCESS_KEY_ID="OTHER")
        with pytest.raises(ConfigurationError, match="credentials do not give access"):
            fetched.fetch_model(model(), model().source, TARGET)


def test_a_secret_without_its_keys_says_which_and_which_it_has() -> None:
    Path("secrets/s3").mkdir(parents=True)
    Path("secrets/s3/accesskey").write_text("KEY")
    said = "Secret s3 has no key AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; it has accesskey"
    with pytest.raises(ConfigurationError, match=said):
        fetched.fetch_model(model(), model().source, TARGET)
    with pytest.raises(ConfigurationError, match=r"has no key credentials\.json"):
        fetched.fetch_model(model("gs://b/k"), "gs://b/k", TARGET)
    hub = ModelSource(source="hf://owner/gated", secret="s3")
    with pytest.raises(ConfigurationError, match="has no key HF_TOKEN"):
        fetched.fetch_model(hub, hub.source, TARGET)


def test_the_hub_gets_the_token_of_the_sources_own_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    tokens: list[Any] = []

    class Hub:
        def __init__(self, token: str | None) -> None:
            tokens.append(token)

        def model_info(self, *_: Any, **__: Any) -> Any:
            return type("Info", (), {"sha": "c0ffee"})()

    def snapshot_download(*_: Any, token: str | None, **__: Any) -> None:
        tokens.append(token)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    Path("secrets/hub").mkdir(parents=True)
    Path("secrets/hub/HF_TOKEN").write_text("hf_one\n")
    gated = ModelSource(source="hf://owner/gated", secret="hub")
    fetched.fetch_model(gated, gated.source, TARGET)
    open_one = ModelSource(source="hf://owner/open", secret="absent")
    fetched.fetch_model(open_one, open_one.source, TARGET.with_name("open"))
    assert tokens == ["hf_one", "hf_one", None, None]


def test_a_broken_off_download_of_a_hub_model_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    seen: list[list[str]] = []

    class Hub:
        def __init__(self, token: str | None) -> None:
            pass

        def model_info(self, *_: Any, **__: Any) -> Any:
            return type("Info", (), {"sha": "c0ffee"})()

    def snapshot_download(_: str, *, local_dir: Path, **__: Any) -> None:
        seen.append(sorted(p.name for p in local_dir.iterdir()))
        (local_dir / "a.safetensors").write_text("w")
        if len(seen) == 1:
            raise ConnectionError("reset")
        (local_dir / "config.json").write_text("{}")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    source = ModelSource(source="hf://owner/model")
    with pytest.raises(Transient):
        fetched.fetch_model(source, source.source, TARGET)
    fetched.fetch_model(source, source.source, TARGET)
    assert seen == [[], ["a.safetensors"]]
    assert json.loads((TARGET / "fetched.json").read_text())["commit"] == "c0ffee"
    assert [p.name for p in TARGET.parent.iterdir() if p.name.startswith(".tmp")] == []
