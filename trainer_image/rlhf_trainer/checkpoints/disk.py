"""Where the checkpoint volume is, which the rest of the trainer need not know.

A claim is one disk that all ranks see: what is committed there is kept. With an object store each
node has a disk of its own, that starts empty and ends with the pod. What a stage reads is brought
there first; what its ranks commit goes to the store while they train on: each node uploads the
files that its ranks wrote, and once all of them are up, the first one adds the manifest.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple, Protocol

from rlhf_api.run import MANIFEST, StageRun

from rlhf_trainer.checkpoints.store import ObjectStore, files_below
from rlhf_trainer.data.fetched import MARKER
from rlhf_trainer.errors import CheckpointUnusable, ConfigurationError, TrainerError
from rlhf_trainer.ranks import Ranks

VOLUME: Final = "checkpoints"
"""Where it is mounted, below the working directory."""
COMMITTED: Final = ("steps", "best", "output")
"""Folders of an attempt that hold what a manifest vouches for; the rest are records."""
COMMITTED_STEPS: Final = "attempt-*/*/step-*"
"""Below a lineage: what may go again."""
ROUND: Final = 20.0
"""Seconds that a node waits before it tells the others that it still does."""
LAST_WORDS: Final = 60.0
"""Seconds that a failed attempt takes to upload what it recorded."""
log = logging.getLogger(__name__)


class Shelf(Protocol):
    """Committed directories somewhere, by their path in the working directory."""

    def committed(self, below: Path) -> list[Path]:
        """Directories below this one that have a manifest."""

    def manifest(self, directory: Path) -> bytes | None:
        """The manifest's bytes; None where it cannot be read."""

    def remove(self, directory: Path) -> None:
        """Delete it, the manifest first."""


class Sharing(NamedTuple):
    """This rank among those that see the same disk."""

    number: int
    ranks: int


class SharedDisk:
    """A claim, or a directory of this machine. Methods are collectives where nothing else is said.

    Not collectives: `address`, `keep_spare`.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.shelf = ranks, FolderShelf()

    @property
    def sharing(self) -> Sharing:
        """All ranks see it."""
        return Sharing(self.ranks.rank, self.ranks.world_size)

    def address(self, path: Path) -> str:
        """What the status calls a path: its place on the volume."""
        on_volume = path.parts[:1] == (VOLUME,)
        return (path.relative_to(VOLUME) if on_volume else path).as_posix()

    def once(self, action: Callable[[], object]) -> None:
        """Act once on each disk; if it fails anywhere, every rank raises."""
        self.ranks.on_main(action)

    def candidates(self, below: Path) -> list[Path]:
        """Directories that a manifest vouches for, as all ranks agree."""
        return self.ranks.on_main(lambda: self.shelf.committed(below))

    def bring_inputs(self, run: StageRun) -> None:
        """Have on every disk what the stage reads.

        Raises ConfigurationError and CheckpointUnusable for what is not there any more.
        """

    def bring(self, directory: Path) -> None:
        """Have a committed directory on every disk."""

    def bring_spare(self, path: Path) -> None:
        """Have a file on every disk that a stage can do without, if it is kept."""

    def keep_spare(self, path: Path) -> None:
        """Keep such a file, which each disk has."""

    def settle(self) -> None:
        """Wait until all that was committed is kept."""

    def keep(self, directory: Path) -> None:
        """Keep a directory that has just been committed."""

    def tidy(self, rule: Callable[[Shelf], None]) -> None:
        """Delete, wherever things are kept, what the rule deletes of a shelf."""
        self.ranks.on_main(lambda: rule(self.shelf))

    def close(self) -> None:
        """End, also after a failure. Not a collective."""


class NodeDisks(SharedDisk):
    """A disk of its own for each node, and an object store behind them."""

    def __init__(self, ranks: Ranks, run: StageRun, store: ObjectStore) -> None:
        super().__init__(ranks)
        self.store, self._output = store, Path(run.output)
        self._stored = StoreShelf(store)
        self._leaders = ranks.group_of_nodes()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._waiting: list[Future[object]] = []
        self._recorded: dict[Path, tuple[int, int]] = {}

    @property
    def sharing(self) -> Sharing:
        """The ranks of this node see it."""
        return Sharing(self.ranks.local_rank, self.ranks.local_world_size)

    def address(self, path: Path) -> str:
        """Its address in the store."""
        return self.store.address(name_of(path))

    def once(self, action: Callable[[], object]) -> None:
        """On each node."""
        self.ranks.on_each_node(action)

    def candidates(self, below: Path) -> list[Path]:
        """What the store has."""
        self.settle()
        return self.ranks.on_main(lambda: self._stored.committed(below))

    def bring_inputs(self, run: StageRun) -> None:
        """Sources that `prepare` has fetched, and outputs of earlier stages."""
        self._later(lambda: bring_inputs(self.store, run))
        self._wait_for_all()

    def bring(self, directory: Path) -> None:
        """From the store; what is there already stays."""
        self._later(lambda: bring(self.store, directory))
        self._wait_for_all()

    def bring_spare(self, path: Path) -> None:
        """From the store; where that fails, a line in the log says so."""
        self._later(lambda: bring_spare(self.store, path))
        self._wait_for_all()

    def keep_spare(self, path: Path) -> None:
        """In the background; likewise."""
        if self.ranks.is_main:
            self._later(lambda: keep_spare(self.store, path))

    def settle(self) -> None:
        """Until all is in the store; a failed upload fails every rank."""
        if self.ranks.is_main:
            self._later(self._upload_records)
        self._wait_for_all()

    def keep(self, directory: Path) -> None:
        """In the background, one directory after the other."""
        self._later(lambda: self._upload(directory))

    def tidy(self, rule: Callable[[Shelf], None]) -> None:
        """Here at once; in the store after what was committed before is there."""
        self.once(lambda: rule(self.shelf))
        if self.ranks.is_main:
            self._later(lambda: rule(self._stored))

    def close(self) -> None:
        """Records of a failed attempt are uploaded, too, as far as they can be within a minute."""
        if self.ranks.is_main:
            self._later(self._upload_records)
        is_done, failed = self._waited(LAST_WORDS)
        if failed is not None or not is_done:
            log.warning("not all of %s is in the store: %s", self._output, failed or "no time left")
        self.store.stop()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _later(self, action: Callable[[], object]) -> None:
        """The first rank of a node acts for it, on one thread, in order."""
        if self.ranks.local_rank == 0:
            self._waiting.append(self._worker.submit(action))

    def _wait_for_all(self) -> None:
        """In rounds: a collective that waits for long is taken for one that hangs."""
        while True:
            outcomes = self.ranks.gather_objects(self._waited(ROUND))
            for _, failed in outcomes:
                if failed is not None:
                    raise failed
            if all(is_done for is_done, _ in outcomes):
                return

    def _waited(self, seconds: float) -> tuple[bool, BaseException | None]:
        """Whether all that this node had to do is done, and what failed."""
        done, rest = wait(self._waiting, seconds, FIRST_EXCEPTION)
        failed = next((error for item in done if (error := item.exception())), None)
        if failed is not None:
            self.store.give_up()
        self._waiting = [] if failed is not None else list(rest)
        return not self._waiting, failed

    def _upload(self, directory: Path) -> None:
        """The files of this node; after those of all nodes, the manifest."""
        name = name_of(directory)
        manifest = directory / MANIFEST
        files = {name_of(path): path for path in files_below(directory) if path != manifest}

        def put() -> None:
            if self.ranks.is_main:  # the same step again, after a roll-back
                self.store.remove([f"{name}/{MANIFEST}"])
            self.store.put(files)

        self._leaders.all_or_none(put)
        if self.ranks.is_main:
            self.store.put({f"{name}/{MANIFEST}": manifest})

    def _upload_records(self) -> None:
        """What the attempt wrote beside its checkpoints and has changed since."""
        for path in files_below(self._output):
            if path.relative_to(self._output).parts[0] in COMMITTED:
                continue
            with suppress(FileNotFoundError):  # a tracker's own, that comes and goes
                state = (path.stat().st_size, path.stat().st_mtime_ns)
                if self._recorded.get(path) != state:
                    self.store.put({name_of(path): path})
                    self._recorded[path] = state


class FolderShelf:
    """Committed directories on this disk."""

    def committed(self, below: Path) -> list[Path]:
        """By their names: what is not whole has another."""
        return list(below.glob(COMMITTED_STEPS))

    def manifest(self, directory: Path) -> bytes | None:
        """Its bytes, or None where it cannot be read."""
        try:
            return (directory / MANIFEST).read_bytes()
        except OSError:
            return None

    def remove(self, directory: Path) -> None:
        """Out of sight first, so that a crash in mid-removal leaves nothing that looks whole."""
        gone = directory.with_name(f".old-{directory.name}")
        shutil.rmtree(gone, ignore_errors=True)
        directory.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


class StoreShelf:
    """Committed directories in the store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def committed(self, below: Path) -> list[Path]:
        """By their manifests, which are uploaded last."""
        names = map(PurePosixPath, self._store.sizes(name_of(below)))
        found = [Path(VOLUME, name.parent) for name in names if name.name == MANIFEST]
        return [path for path in found if path.relative_to(below).match(COMMITTED_STEPS)]

    def manifest(self, directory: Path) -> bytes | None:
        """Its bytes, or None where there is none."""
        return self._store.read(f"{name_of(directory)}/{MANIFEST}")

    def remove(self, directory: Path) -> None:
        """The manifest first: what is left by a cut is no checkpoint."""
        self._store.remove_folder(name_of(directory), MANIFEST)


def open_disk(run: StageRun, ranks: Ranks) -> SharedDisk:
    """The disk that the stage file names. A collective."""
    store = open_store(run)
    return SharedDisk(ranks) if store is None else NodeDisks(ranks, run, store)


def open_store(run: StageRun) -> ObjectStore | None:
    """The object store that the stage file names, if any."""
    return ObjectStore(run.store, run.store_secret) if run.store else None


def name_of(path: Path) -> str:
    """The name in the store of a path on the volume."""
    return path.relative_to(VOLUME).as_posix()


def bring(store: ObjectStore, directory: Path) -> bool:
    """Have what the store holds of a directory on this disk; False where that is nothing."""
    sizes = store.sizes(name_of(directory))
    store.bring(sizes, Path(VOLUME))
    return bool(sizes)


def bring_spare(store: ObjectStore, path: Path) -> None:
    """Have a file on this disk that nobody has to have, if the store has it."""
    try:
        bring(store, path.parent)
    except (TrainerError, OSError) as error:
        log.warning("%s is not brought here: %s", store.address(name_of(path)), error)


def keep_spare(store: ObjectStore, path: Path) -> None:
    """Upload such a file."""
    try:
        store.put({name_of(path): path})
    except (TrainerError, OSError) as error:
        log.warning("%s is not kept: %s", store.address(name_of(path)), error)


def bring_source(store: ObjectStore, directory: Path) -> bool:
    """Have a fetched source on this disk; False where the store does not have all of it."""
    return store.read(f"{name_of(directory)}/{MARKER}") is not None and bring(store, directory)


def keep_source(store: ObjectStore, directory: Path) -> None:
    """Upload a fetched source, unless the store has it."""
    name = name_of(directory)
    marker = f"{name}/{MARKER}"
    if store.read(marker) == (directory / MARKER).read_bytes():
        return
    store.remove_folder(name, MARKER)
    files = {name_of(path): path for path in files_below(directory)}
    last = files.pop(marker)
    store.put(files)
    store.put({marker: last})


def bring_inputs(store: ObjectStore, run: StageRun) -> None:
    """Have on this disk what a stage reads."""
    sources = _on_volume(run.paths.values())
    for path in sources:
        if not bring_source(store, path):
            raise ConfigurationError(
                f"{store.address(name_of(path))} is not there: what prepare fetched was deleted; "
                f"have it fetched again: kubectl annotate rlhfjob {run.job.name} "
                f"rlhf.dev/refresh=again --overwrite"
            )
    for path in _on_volume(item.path for item in run.inputs.values()):
        if path not in sources and not bring(store, path):
            raise CheckpointUnusable(
                f"{store.address(name_of(path))} is not there: the output of an earlier stage was "
                "deleted"
            )


def _on_volume(paths: Iterable[str]) -> list[Path]:
    return [path for path in map(Path, dict.fromkeys(paths)) if path.parts[:1] == (VOLUME,)]
