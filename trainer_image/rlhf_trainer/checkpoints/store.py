"""An object store in place of a checkpoint volume: the same tree, a key for each file.

A store knows no rename. What stands for it is the order: the files of a directory first, its
`manifest.json` (of a fetched source, `fetched.json`) last. A directory without it was cut short.
"""

from __future__ import annotations

import errno
import logging
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from ctypes import py_object, pythonapi
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from rlhf_trainer.data.buckets import (
    CHUNK,
    COPIES_AT_ONCE,
    file_system,
    place_below,
    plain_error,
)
from rlhf_trainer.data.credentials import Credentials
from rlhf_trainer.errors import ConfigurationError, TrainerError, Transient, first_line

PAUSES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0)
"""Seconds between tries: five minutes in all, for the attempt that gives up trains again from its
newest checkpoint."""
PIECE: Final = 32 << 20
"""Bytes that are sent at once: of ten thousand pieces an object has at most."""
NO_BUCKET: Final = ("NO_SUCH_BUCKET", "The specified bucket does not exist", "NoSuchBucket")
T = TypeVar("T")
log = logging.getLogger(__name__)


class ObjectStore:
    """A folder of a bucket. Names are paths below it, with slashes.

    Each method tries again while the store is down, then raises Transient; ConfigurationError where
    no further try can help. Both name the address and the reason.
    """

    def __init__(self, uri: str, secret: str | None) -> None:
        self.uri = uri.rstrip("/")
        self._secret = secret
        self._is_given_up, self._is_stopped = threading.Event(), threading.Event()
        parts = urlsplit(self.uri)
        self._root = f"{parts.netloc}{parts.path}"
        self._files: Any = self._tried(
            self.uri, lambda: file_system(parts.scheme, Credentials(secret))
        )

    def sizes(self, below: str) -> dict[str, int]:
        """The bytes of every file below a folder, by name."""
        from pyarrow.fs import FileSelector, FileType

        folder = FileSelector(self._path(below), recursive=True, allow_not_found=True)
        found = self._tried(self.address(below), lambda: self._files.get_file_info(folder))
        start = len(self._root) + 1
        return {item.path[start:]: item.size for item in found if item.type == FileType.File}

    def read(self, name: str) -> bytes | None:
        """A small file; None where there is none."""

        def read() -> bytes | None:
            try:
                with self._files.open_input_stream(self._path(name)) as stream:
                    content: bytes = stream.read()
            except FileNotFoundError:
                return None
            return content

        return self._tried(self.address(name), read)

    def write(self, name: str, content: bytes) -> None:
        """A small file."""

        def write() -> None:
            with self._files.open_output_stream(self._path(name)) as stream:
                stream.write(content)

        self._tried(self.address(name), write)

    def put(self, files: Mapping[str, Path]) -> None:
        """Upload files under their names, some at once."""
        _at_once(self._put, files.items())

    def get(self, files: Mapping[str, Path]) -> None:
        """Bring files here, some at once; each is whole or not there. What the store no longer has
        is left out."""
        _at_once(self._get, files.items())

    def bring(self, sizes: Mapping[str, int], root: Path) -> None:
        """Have files of these sizes below a directory, under their names. One that is there with
        its size stays."""
        paths = {name: place_below(root, name, self.uri) for name in sizes}
        self.get({name: path for name, path in paths.items() if _size(path) != sizes[name]})

    def remove_folder(self, folder: str, last: str) -> None:
        """Delete all in a folder, the file first that was uploaded last: what a cut leaves behind
        is not taken for whole. S3 deletes a thousand at a time; what speaks its protocol may not,
        and then each file takes three requests."""
        self.remove([f"{folder}/{last}"])
        with suppress(OSError):
            self._files.delete_dir(self._path(folder))
        self.remove(self.sizes(folder))

    def remove(self, names: Iterable[str]) -> None:
        """Delete files, some at once; one that is not there is no error."""
        _at_once(self._remove, names)

    def give_up(self) -> None:
        """From now on a failure is not tried again."""
        self._is_given_up.set()

    def stop(self) -> None:
        """End uploads where they are."""
        self._is_stopped.set()
        self.give_up()

    def address(self, name: str) -> str:
        """The whole address of a name."""
        return f"{self.uri}/{name}" if name else self.uri

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _put(self, item: tuple[str, Path]) -> None:
        name, source = item
        with source.open("rb") as file:

            def copy() -> None:
                file.seek(0)
                with _whole(self._files.open_output_stream(self._path(name))) as out:
                    while chunk := file.read(PIECE):
                        if self._is_stopped.is_set():
                            raise InterruptedError("the stage has ended")
                        out.write(chunk)

            self._tried(self.address(name), copy)

    def _get(self, item: tuple[str, Path]) -> None:
        name, target = item
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".part-{target.name}")

        def copy() -> bool:
            try:
                source = self._files.open_input_stream(self._path(name))
            except FileNotFoundError:
                return False
            with source, draft.open("wb") as file:
                shutil.copyfileobj(source, file, CHUNK)
            return True

        if self._tried(self.address(name), copy):
            draft.replace(target)

    def _remove(self, name: str) -> None:
        def remove() -> None:
            with suppress(FileNotFoundError):
                self._files.delete_file(self._path(name))

        self._tried(self.address(name), remove)

    def _tried(self, address: str, action: Callable[[], T]) -> T:
        pauses = iter(PAUSES)
        while True:
            try:
                return action()
            except TrainerError:
                raise
            except (OSError, ValueError) as error:
                failure = self._failure(address, plain_error(address, error))
                is_final = isinstance(failure, ConfigurationError) or _is_full(error)
            pause = None if is_final else next(pauses, None)
            if pause is None or self._is_given_up.is_set():
                raise failure
            log.warning("%s; trying again in %.0f s", failure, pause)
            if self._is_given_up.wait(pause):
                raise failure

    def _failure(self, address: str, error: Exception) -> TrainerError:
        said = first_line(error)
        if any(sign in said for sign in NO_BUCKET):
            return ConfigurationError(
                f"{address}: there is no such bucket; make it, or name another in "
                "spec.checkpoints.uri of a new job"
            )
        if isinstance(error, PermissionError):
            return ConfigurationError(
                f"{said}: {self._who} has to be allowed to list, read, write and delete below "
                f"{self.uri} (spec.checkpoints)"
            )
        if isinstance(error, ValueError):
            return ConfigurationError(f"{address}: {said} (spec.checkpoints)")
        if _is_full(error):
            return Transient(f"no room is left on the pod's disk for its copy of {address}")
        return Transient(f"{address} cannot be reached: {said}")

    @property
    def _who(self) -> str:
        has_secret = Credentials(self._secret).is_there
        return f"Secret {self._secret}" if has_secret else "the identity that the process runs as"


@contextmanager
def _whole(out: Any) -> Iterator[Any]:
    """An output stream that is closed only where nothing was raised. pyarrow has no abort: closing
    makes an object of what was sent, and so does the stream's end, also at the interpreter's, so
    that it must have none. Parts in the store are then those of an upload that was cut."""
    try:
        yield out
    except BaseException:
        pythonapi.Py_IncRef(py_object(out))
        raise
    out.close()


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _at_once(action: Callable[[T], None], items: Iterable[T]) -> None:
    """All of them, some at a time; the first failure is raised once the others have ended."""
    with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
        for _ in pool.map(action, items):
            pass


def files_below(directory: Path) -> Iterator[Path]:
    """Regular files, sorted; drafts and what is being removed left out."""
    for path in sorted(directory.rglob("*")):
        inside = path.relative_to(directory).parts
        if path.is_file() and not any(part.startswith((".tmp-", ".old-")) for part in inside):
            yield path
