"""Files of S3 (or what speaks its protocol) and of Google Cloud Storage, through pyarrow."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

from rlhf_trainer.data.credentials import GOOGLE_FILE, S3_KEYS, Credentials
from rlhf_trainer.errors import ConfigurationError

COPIES_AT_ONCE: Final = 8
CHUNK: Final = 8 << 20
PATIENCE: Final = timedelta(minutes=1)
"""How long a request is repeated; the attempt itself is repeated after that."""
CONNECT_WITHIN: Final = 10.0
ANSWER_WITHIN: Final = 60.0
"""Seconds; the SDK's own second and three are short for a store under load."""
ENDPOINT: Final = "AWS_ENDPOINT_URL"
REFUSALS: Final = (
    "ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID",
    "HTTP status 403", "PERMISSION_DENIED", "UNAUTHENTICATED", "invalid_grant",
)  # fmt: skip


def fetch_bucket(uri: str, credentials: Credentials, directory: Path) -> None:
    """Copy a key, or all keys below a folder. What an earlier try has copied stays.

    Raises FileNotFoundError, PermissionError and ConfigurationError where another try cannot help,
    else OSError.
    """
    parts = urlsplit(uri)
    path = f"{parts.netloc}{parts.path}".rstrip("/")
    try:
        files = file_system(parts.scheme, credentials)
        found = _files_at(files, path)
    except (OSError, ValueError) as error:
        raise plain_error(uri, error) from None
    if not found:
        raise FileNotFoundError(f"there is nothing at {uri}")
    places = [place_below(directory, _below(info.path, path), uri) for info in found]
    with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
        list(pool.map(lambda info, place: _copy(files, info, place), found, places))


def place_below(directory: Path, name: str, uri: str) -> Path:
    """Where a key is laid out. A key may be any text: one that leads out of the directory would
    overwrite what is not its own, and is ConfigurationError.
    """
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise ConfigurationError(
            f"{uri} has a key that leads out of its folder, {name!r}: whoever wrote it there may "
            "mean harm; delete it, or use another folder"
        )
    return directory / inside


def file_system(scheme: str, credentials: Credentials) -> Any:
    """What speaks to the store: a pyarrow.fs.FileSystem, whose paths begin with the bucket."""
    import pyarrow.fs

    if scheme == "gs":
        credentials.require(GOOGLE_FILE)
        if path := credentials.path(GOOGLE_FILE):
            os.environ["GOOGLE_APPLICATION_CREDENTIALS"] = str(path.absolute())
        return pyarrow.fs.GcsFileSystem(retry_time_limit=PATIENCE)
    credentials.require(*S3_KEYS)
    access_key, secret_key = (credentials.get(key) for key in S3_KEYS)
    own = None if credentials.is_there else os.environ.get(ENDPOINT)  # pyarrow does not look
    endpoint = urlsplit(credentials.get(ENDPOINT) or own or "")
    return pyarrow.fs.S3FileSystem(
        access_key=access_key,
        secret_key=secret_key,
        session_token=credentials.get("AWS_SESSION_TOKEN"),
        region=credentials.get("AWS_REGION"),
        scheme=endpoint.scheme or None,
        endpoint_override=endpoint.netloc or None,
        connect_timeout=CONNECT_WITHIN,
        request_timeout=ANSWER_WITHIN,
        background_writes=False,  # what is read faster than it is sent would fill the memory
        allow_delayed_open=True,  # a small file takes one request, and not three
    )


def _files_at(files: Any, path: str) -> list[Any]:
    from pyarrow.fs import FileSelector, FileType

    (info,) = files.get_file_info([path])
    if info.type == FileType.File:
        return [info]
    below = files.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
    return [item for item in below if item.type == FileType.File]


def _below(path: str, root: str) -> str:
    """The name within what is copied; of a single key, its own name."""
    return path.removeprefix(f"{root}/") if path != root else Path(path).name


def _copy(files: Any, info: Any, target: Path) -> None:
    """Whole or not at all, with the time of the original: by it and the size, a copy is known."""
    if target.exists() and _same(target, info):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".part-{target.name}")
    with files.open_input_stream(info.path) as source, draft.open("wb") as copy:
        shutil.copyfileobj(source, copy, CHUNK)
    os.utime(draft, ns=(info.mtime_ns or 0, info.mtime_ns or 0))
    draft.replace(target)


def _same(target: Path, info: Any) -> bool:
    state = target.stat()
    return (state.st_size, state.st_mtime_ns) == (info.size, info.mtime_ns or 0)


def plain_error(uri: str, error: Exception) -> Exception:
    """pyarrow says in words alone whether another try can help."""
    text = str(error)
    if any(sign in text for sign in REFUSALS):
        return PermissionError(f"the credentials do not give access to {uri}")
    return error
