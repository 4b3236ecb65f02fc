"""Checkpoints: committed by an atomic rename, vouched for by a manifest, restored bit for bit.

Layout below the lineage (all attempts on one input hash):

    attempt-<n>/steps/step-<s>/   manifest.json, state.pt, rng-<rank>.pt, <engine>/…,
                                  weights-<rank>.pt (PPO's average, weights to go back to)
    attempt-<n>/best/step-<s>/    a model in Hugging Face layout that was best on held-out rows
    attempt-<n>/output/           what the stage hands on

A directory is written under a name that starts with `.tmp-`, its files are fsynced and hashed, the
manifest is written, and only then it gets its name: what has a name is whole. Whether the ranks see
one disk or each node its own, and what becomes of what is committed, is for `disk.py` to know.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from rlhf_api.run import MANIFEST, StageRun
from rlhf_api.status import CheckpointRef
from safetensors import SafetensorError

from rlhf_trainer.checkpoints.disk import SharedDisk, Sharing, Shelf
from rlhf_trainer.checkpoints.random_states import random_states, restore_random_states
from rlhf_trainer.checkpoints.vouched import (
    FORMAT_VERSION,
    SEAL,
    checked_manifest,
    seal_of,
    sha256_of,
)
from rlhf_trainer.durable import sync, sync_directories
from rlhf_trainer.errors import CheckpointUnusable, Transient
from rlhf_trainer.ranks import Ranks

if TYPE_CHECKING:
    from rlhf_trainer.engine import Engine

PROBE: Final = "0" * (1 << 20)
"""What a disk with room takes."""
_STEP = re.compile(r"^step-(\d+)$")
_ATTEMPT = re.compile(r"^attempt-(\d+)$")
_OF_THE_MACHINE = ("time/", "memory/", "train/tokens_per_second")
log = logging.getLogger(__name__)


class Restored(NamedTuple):
    """Where a run goes on from."""

    step: int
    state: dict[str, Any]  # what the stage gave to `save`
    weights: dict[str, Any]  # what the rank in this one's place gave; {}: none did
    wrote_weights: int = 0  # ranks that did


class _Candidate(NamedTuple):
    step: int
    attempt: int
    path: Path


class Checkpointer:
    """Saves and restores one run. All its methods are collectives but where it says otherwise."""

    def __init__(self, run: StageRun, ranks: Ranks, keep: int, disk: SharedDisk) -> None:
        self.run, self.ranks, self.keep, self.disk = run, ranks, keep, disk
        self.directory = Path(run.output)
        self.lineage = {"job": run.job.uid, "stage": run.stage, "hash": run.hash}
        self._passed_over: set[Path] = set()

    def save(
        self,
        step: int,
        engines: Mapping[str, Engine],
        state: Mapping[str, Any],
        best: int | None = None,
        weights: Mapping[str, Any] | None = None,
    ) -> None:
        """Commit the whole state after `step` steps, then delete what is no longer needed.

        `state` holds small tensors and JSON values, the same on every rank. `weights` are large:
        each rank that has some writes its own. The random states of every library and rank are
        added. `best` is the step whose `keep_weights` must stay.
        """

        def write(directory: Path) -> None:
            for name, engine in engines.items():
                engine.save(directory / name)
            if self.ranks.is_main:
                torch.save(dict(state), directory / "state.pt")
            if weights:
                torch.save(dict(weights), directory / f"weights-{self.ranks.rank:05d}.pt")
            torch.save(random_states(), directory / f"rng-{self.ranks.rank:05d}.pt")

        final = self.directory / "steps" / f"step-{step:08d}"
        self._commit(final, write, {**self._origin(step), "best": best})
        self._passed_over.discard(final)
        self.disk.tidy(partial(self._delete_old, self.keep))

    def restore(self, engines: Mapping[str, Engine]) -> Restored | None:
        """Load the newest valid checkpoint of this lineage; None where there is none.

        Damaged and foreign ones are passed over, each with a line in the log. One that was written
        by another number of ranks is shared out anew; a rank that was not there then takes over
        the random states of another, so that only what is drawn in dropout differs.
        """
        for candidate in self._candidates("steps"):
            manifest = self._accepted(candidate)
            if manifest is None:
                self._passed_over.add(candidate.path)
                continue
            wrote: int = manifest["worldSize"]
            for name, engine in engines.items():
                self._load(engine, candidate.path / name, wrote)
            state = torch.load(candidate.path / "state.pt", weights_only=True, map_location="cpu")
            rng = candidate.path / f"rng-{self.ranks.rank % wrote:05d}.pt"
            restore_random_states(torch.load(rng, weights_only=True))
            if self.ranks.is_main:
                log.info("going on from step %d (attempt %d)", candidate.step, candidate.attempt)
            return Restored(candidate.step, state, *self._weights(candidate.path))
        return None

    def keep_weights(self, step: int, write: Callable[[Path], None]) -> None:
        """Commit a model in Hugging Face layout as the best one so far.

        It stays as long as a retained checkpoint names its step as `best`.
        """
        self._commit(self.directory / "best" / f"step-{step:08d}", write, self._origin(step))

    def kept_weights(self, step: int) -> Path | None:
        """The valid model that `keep_weights` committed at this step, in any attempt."""
        for candidate in self._candidates("best"):
            if candidate.step == step and self._accepted(candidate) is not None:
                return candidate.path
        return None

    def commit_output(
        self, write: Callable[[Path], None], metrics: Mapping[str, float] | None = None
    ) -> CheckpointRef:
        """Commit what the stage hands on. `write` gets a directory, on every rank; it must write on
        one rank alone (`ranks.is_main`), but may gather on all.

        Equal results give equal digests, on whichever attempt and in whichever cluster: what
        depends on the clock, on the attempt or on the job's UID stays out of the manifest, or a
        disruption would change the identity of every later stage.

        Of training states the newest alone stays then, for an attempt whose end nobody hears of:
        those of a stage that is done would fill the volume of the stages behind it.
        """
        steady = {k: v for k, v in (metrics or {}).items() if not k.startswith(_OF_THE_MACHINE)}
        result = {"stage": self.run.stage, "hash": self.run.hash, "metrics": steady}
        output = self.directory / "output"
        self._commit(output, write, result)
        self.disk.tidy(partial(self._delete_old, 1))
        self.disk.bring(output)  # every rank reads it
        digest = self.ranks.broadcast(sha256_of(output / MANIFEST))
        return CheckpointRef(uri=self.disk.address(output), digest=f"sha256:{digest}")

    def _origin(self, step: int) -> dict[str, Any]:
        """Where a training state comes from; only the same lineage goes on from it."""
        return {
            "lineage": self.lineage,
            "attempt": self.run.attempt,
            "step": step,
            "worldSize": self.ranks.world_size,
        }

    def _commit(self, final: Path, write: Callable[[Path], None], about: dict[str, Any]) -> None:
        temporary = final.with_name(f".tmp-{final.name}")
        self.disk.settle()
        try:
            self.disk.once(lambda: _fresh(temporary))
            _written(temporary, write)
            self.ranks.barrier()
            files = self._hashed(temporary)
            self.disk.once(lambda: self._publish(temporary, final, {**about, "files": files}))
        except OSError as error:
            reason = error.strerror or str(error)
            raise Transient(f"cannot write {final}: {reason}", step=about.get("step")) from error
        self.disk.keep(final)

    def _hashed(self, directory: Path) -> dict[str, Any]:
        """SHA-256 and size of each file, fsynced; the ranks share the work."""
        mine = {
            str(path.relative_to(directory)): {"sha256": _synced_sha256(path), "size": size}
            for path, size in _share(directory, self.disk.sharing)
        }
        parts = self.ranks.gather_objects(mine)
        return {name: part[name] for part in parts for name in part}

    def _publish(self, temporary: Path, final: Path, about: dict[str, Any]) -> None:
        manifest = {"formatVersion": FORMAT_VERSION, **about}
        if "lineage" in manifest:
            manifest[SEAL] = seal_of(manifest)
        text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        _write_synced(temporary / MANIFEST, text)
        sync_directories(temporary)
        if final.exists():  # the same step again, after a roll-back
            final.rename(final.with_name(f".old-{final.name}"))
        temporary.rename(final)
        sync(final.parent)
        shutil.rmtree(final.with_name(f".old-{final.name}"), ignore_errors=True)

    def _candidates(self, kind: str) -> list[_Candidate]:
        """Committed directories of this and earlier attempts, newest step first."""
        return self._newest_first(kind, self.disk.candidates(self.directory.parent))

    def _newest_first(self, kind: str, paths: Iterable[Path]) -> list[_Candidate]:
        found = []
        for path in paths:
            step, attempt = _STEP.match(path.name), _ATTEMPT.match(path.parents[1].name)
            if step and attempt and path.parent.name == kind:
                found.append(_Candidate(int(step[1]), int(attempt[1]), path))
        return sorted((item for item in found if item.attempt <= self.run.attempt), reverse=True)

    def _accepted(self, candidate: _Candidate) -> dict[str, Any] | None:
        """The manifest, if this is whole and of our lineage; else None, with the reason logged."""
        reason, manifest = "", {}
        self.disk.bring(candidate.path)
        try:
            manifest = checked_manifest(candidate.path, self.disk.sharing)
            if manifest.get("lineage") != self.lineage:
                reason = f"it is of another lineage: {manifest.get('lineage')}"
            elif missing := self._origin(0).keys() - manifest.keys():
                reason = f"its {MANIFEST} is damaged: without {', '.join(sorted(missing))}"
            elif manifest.get(SEAL, seal := seal_of(manifest)) != seal:
                reason = f"its {MANIFEST} is damaged: it is not what was written"
        except CheckpointUnusable as error:
            reason = str(error)
        reasons = [r for r in self.ranks.gather_objects(reason) if r]
        if reasons and self.ranks.is_main:
            log.warning("passing over %s: %s", candidate.path, reasons[0])
        return None if reasons else manifest

    def _load(self, engine: Engine, directory: Path, wrote: int) -> None:
        if wrote == self.ranks.world_size:
            engine.load(directory)
            return
        scratch = self.directory / ".tmp-regrouped"
        try:
            self.disk.once(lambda: _fresh(scratch))
            engine.load_regrouped(directory, scratch, self.disk.once)
            self.ranks.barrier()
            self.disk.once(lambda: shutil.rmtree(scratch))
        except OSError as error:
            reason = error.strerror or str(error)
            raise Transient(f"cannot lay out {directory} in {scratch}: {reason}") from error

    def _weights(self, directory: Path) -> tuple[dict[str, Any], int]:
        """This rank's weights, or those that it shares with another one; and how many there are."""
        files = sorted(directory.glob("weights-*.pt"))
        if not files:
            return {}, 0
        mine = files[self.ranks.rank % len(files)]
        return torch.load(mine, weights_only=True, map_location="cpu"), len(files)

    def _delete_old(self, keep: int, shelf: Shelf) -> None:
        """Keep so many of the newest checkpoints, and the best weights that they name.

        One that was passed over counts for none, however new its step: else those that are made
        after it would go. It goes itself once none before it stays.
        """
        found = shelf.committed(self.directory.parent)
        candidates = self._newest_first("steps", found)
        usable = [item for item in candidates if item.path not in self._passed_over]
        enough = usable[keep - 1 :]
        staying = [item for item in candidates if item >= enough[0]] if enough else candidates
        for candidate in candidates[len(staying) :]:
            shelf.remove(candidate.path)
        named = {_best_of(shelf.manifest(candidate.path)) for candidate in staying}
        for candidate in self._newest_first("best", found):
            if candidate.step not in named:
                shelf.remove(candidate.path)


def _share(directory: Path, sharing: Sharing) -> list[tuple[Path, int]]:
    """This rank's share of a directory's files, with their sizes."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return [(path, path.stat().st_size) for path in paths[sharing.number :: sharing.ranks]]


def _best_of(manifest: bytes | None) -> int | None:
    try:
        best: int | None = json.loads(manifest or b"{}").get("best")
    except ValueError:
        return None
    return best


def _written(directory: Path, write: Callable[[Path], None]) -> None:
    """Write, and have what torch and safetensors say of a full or broken disk, in errors of their
    own and other words, be the OSError that it is.
    """
    try:
        write(directory)
    except (RuntimeError, SafetensorError):
        _write_synced(directory / ".probe", PROBE)
        raise


def _fresh(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _synced_sha256(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
