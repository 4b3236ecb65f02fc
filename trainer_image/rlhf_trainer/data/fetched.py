"""Sources that are not mounted: fetched by prepare to the checkpoint volume, once, and pinned.

A model or a bucket's files lie in the source's folder as they are. A hub data set has one folder
of Parquet files for each split that some stage names. Beside them ``fetched.json`` says what was
fetched, at which commit. Jobs that share the volume share what was fetched: one fetches, the others
wait for it. A try that was broken off leaves what it has to the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from rlhf_api.data import DataSource, ModelSource

from rlhf_trainer.data.buckets import fetch_bucket
from rlhf_trainer.data.credentials import HUB_TOKEN, Credentials
from rlhf_trainer.durable import sync, sync_directories, sync_files
from rlhf_trainer.errors import BadData, ConfigurationError, TrainerError, Transient

MARKER: Final = "fetched.json"
UNUSED: Final = ("*.msgpack", "*.h5", "*.onnx", "*.gguf", "*.ot", "original/*", "*.md", ".*")
"""Files of a model repository that no stage reads."""

NOT_THERE: Final = frozenset(
    {
        "RepositoryNotFoundError",
        "RevisionNotFoundError",
        "GatedRepoError",
        "EntryNotFoundError",
        "DatasetNotFoundError",
        "HFValidationError",
        "DataFilesNotFoundError",
        "FileNotFoundError",
        "PermissionError",
        "ValueError",
    }
)
"""Errors that another try cannot heal, by name: their classes move between library versions."""


def is_remote(uri: str) -> bool:
    """Whether prepare has to fetch it."""
    return uri.startswith(("hf://", "s3://", "gs://"))


def fetched(root: Path) -> dict[str, Any] | None:
    """What prepare wrote about a folder that it fetched, or None."""
    path = root / MARKER
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def folder_of_split(root: Path, split: str) -> Path:
    """The folder with the rows of one split; the root itself where splits have no folders."""
    about = fetched(root)
    if about is None or "splits" not in about:
        return root
    if split not in about["splits"]:
        have = ", ".join(about["splits"])
        raise BadData(f"{about['source']}: there is no split {split!r}; there are {have}")
    return root / split


def heldout_split(source: DataSource) -> str:
    """The split that `evalSource` is read from: `test`, of files and of the very set that is
    trained on. Another set of a hub has the split that was named, or none."""
    is_another = source.eval_source != source.source
    is_of_hub = (source.eval_source or "").startswith("hf://")
    return source.split if is_another and is_of_hub else "test"


def revision_of(source: ModelSource | DataSource, uri: str) -> str | None:
    """The revision to fetch an address at; a tokenizer or held-out set elsewhere has none."""
    return source.revision if uri == source.source else None


def fetch_model(source: ModelSource, uri: str, target: Path) -> None:
    """A hub model at its pinned commit, or a bucket's folder."""
    with _alone(target):
        if not _is_done(target, uri, revision_of(source, uri)):
            fetch = _fetch_hub_model if uri.startswith("hf://") else _fetch_bucket
            with _plain_errors(uri):
                fetch(source, uri, target)


def fetch_data(source: DataSource, uri: str, target: Path) -> None:
    """The splits of a hub data set (hf://OWNER/NAME[/CONFIGURATION]), or a bucket's files."""
    with _alone(target):
        if not uri.startswith("hf://"):
            if not _is_done(target, uri, None):
                with _plain_errors(uri):
                    _fetch_bucket(source, uri, target)
            return
        splits = {source.split} if uri == source.source else set()
        if uri == source.eval_source:
            splits.add(heldout_split(source))
        for split in sorted(splits):
            _fetch_split(source, uri, split, target)


def _fetch_hub_model(source: ModelSource | DataSource, uri: str, target: Path) -> None:
    from huggingface_hub import HfApi, snapshot_download

    repository, token = uri.removeprefix("hf://"), _hub_token(source)
    revision = revision_of(source, uri)
    commit = HfApi(token=token).model_info(repository, revision=revision).sha

    def write(directory: Path) -> None:
        snapshot_download(
            repository,
            revision=commit,
            local_dir=directory,
            ignore_patterns=list(UNUSED),
            token=token,
        )
        shutil.rmtree(directory / ".cache", ignore_errors=True)

    about = {"source": uri, "revision": revision, "commit": commit}
    _into(target, write, about)


def _hub_token(source: ModelSource | DataSource) -> str | None:
    credentials = Credentials(source.secret)
    credentials.require(HUB_TOKEN)
    return credentials.get(HUB_TOKEN)


def _fetch_split(source: DataSource, uri: str, split: str, target: Path) -> None:
    revision = revision_of(source, uri)
    about = fetched(target) or {"source": uri, "revision": revision, "splits": []}
    if split in about["splits"]:
        return
    import datasets
    from huggingface_hub import HfApi

    owner, name, *configuration = uri.removeprefix("hf://").split("/")
    repository, token = f"{owner}/{name}", _hub_token(source)
    with _plain_errors(uri):
        known = about.get("commit")
        commit = known or HfApi(token=token).dataset_info(repository, revision=revision).sha
        rows = datasets.load_dataset(
            repository,
            "/".join(configuration) or None,
            split=split,
            revision=commit,
            token=token,
        )

        def write(directory: Path) -> None:
            rows.to_parquet(str(directory / "part-00000.parquet"))

        _replaced(target / split, write)
    target.mkdir(parents=True, exist_ok=True)
    _mark(target, {**about, "commit": commit, "splits": [*about["splits"], split]})


def _fetch_bucket(source: ModelSource | DataSource, uri: str, target: Path) -> None:
    def write(directory: Path) -> None:
        fetch_bucket(uri, Credentials(source.secret), directory)

    _into(target, write, {"source": uri, "revision": None})


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process at a time fetches a source, where the file system has locks."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".lock-{target.name}").open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_done(target: Path, uri: str, revision: str | None) -> bool:
    about = fetched(target)
    return about is not None and (about["source"], about["revision"]) == (uri, revision)


def _into(target: Path, write: Callable[[Path], None], about: dict[str, Any]) -> None:
    """Write a folder and its marker; files of an earlier try at the same commit stay."""

    def write_marked(directory: Path) -> None:
        write(directory)
        _mark(directory, about)

    commit = about.get("commit")
    _replaced(target, write_marked, keep=f"{target.name}-{commit}" if commit else target.name)


def _replaced(target: Path, write: Callable[[Path], None], keep: str | None = None) -> None:
    """Write a folder under another name first: what has its name is whole.

    `keep` names the folder of tries, whose files `write` knows to tell whole ones from others.
    """
    temporary = target.with_name(f".tmp-{keep or target.name}")
    if keep is None:
        shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True, exist_ok=True)
    write(temporary)
    sync_files(temporary)  # nobody reads a model's files again to see whether they are whole
    sync_directories(temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    sync(target.parent)


def _mark(directory: Path, about: dict[str, Any]) -> None:
    temporary = directory / f".tmp-{MARKER}"
    temporary.write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", "utf-8")
    sync(temporary)
    temporary.rename(directory / MARKER)


class _plain_errors:  # noqa: N801  (a context manager, used like a function)
    """Errors of hub and bucket libraries as ours: final where it is not there, else transient."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, TrainerError):
            return
        names = {cls.__name__ for cls in type(error).__mro__}
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        if names & NOT_THERE and not names & {"ConnectionError", "LocalEntryNotFoundError"}:
            raise ConfigurationError(f"{self._uri} cannot be fetched: {text}") from None
        raise Transient(f"{self._uri} cannot be fetched now: {text}") from None
