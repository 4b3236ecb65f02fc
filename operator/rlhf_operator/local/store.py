"""DIR: the status, the volumes and the pods of a job on one machine; one user at a time."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from rlhf_api.job import RLHFJob
from rlhf_api.run import MANIFEST
from rlhf_api.status import CheckpointRef, JobStatus, StageStatus
from rlhf_api.validation import InvalidJob, kept_job

from rlhf_operator.local.errors import LocalRunError
from rlhf_operator.local.processes import is_locked
from rlhf_operator.names import ANNOTATION_APPROVE, claim_name
from rlhf_operator.render.config import refs_of
from rlhf_operator.render.volumes import CHECKPOINTS, place

STATUS_FILE: Final = "status.yaml"
LOCK_FILE: Final = ".lock"
REFUSALS: Final = 5
"""How often a lock is found that nobody shares: one of a run, and not of another that begins."""
LOOKERS_S: Final = 30.0
"""Seconds that processes are waited for that only look."""
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Store:
    """The directory of a run. Raises LocalRunError where it is in use, cannot be read, or holds
    the run of another job: its status, the only way to its results, would be lost."""

    def __init__(self, directory: Path, job: RLHFJob, on_change: Callable[[RLHFJob], None]) -> None:
        self.directory = directory.absolute()
        self.volumes = self.directory / "volumes"
        self.pods = self.directory / "pods"
        self._on_change = on_change
        self._lock = _locked(self.directory)
        previous = _previous(self.directory / STATUS_FILE)
        if previous and previous.metadata.name != job.metadata.name:
            raise LocalRunError(
                f"{directory} holds the run of the job {previous.metadata.name}, and this is "
                f"{job.metadata.name}: give another --dir, or delete that run first."
            )
        self.job = _continued(job, previous)
        self.status = self._remembered(previous)

    def close(self) -> None:
        """Lets somebody else in."""
        self._lock.close()

    def write(self, status: JobStatus) -> None:
        """Replaces status.yaml in one step, then tells of the change."""
        self.status = status
        text = yaml.dump(
            self.written.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
        )
        draft = self.directory / f"{STATUS_FILE}.tmp"
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.directory / STATUS_FILE)
        self._on_change(self.written)

    @property
    def written(self) -> RLHFJob:
        """The job as the user wrote it, with its status."""
        return self.job.model_copy(update={"status": self.status})

    def _remembered(self, previous: RLHFJob | None) -> JobStatus | None:
        """What earlier runs reached, as far as it is still there.

        An object store is not asked: it is known to the pods alone, as on a cluster.
        """
        if previous is None or previous.metadata.uid != self.job.metadata.uid:
            return None
        status = previous.status or JobStatus()
        if self.job.spec.checkpoints.uri:
            return status
        stages = {name: self._with_outputs(stage) for name, stage in status.stages.items()}
        prepare = status.prepare
        if prepare and not all(path.exists() for path in self._fetched()):
            prepare = prepare.model_copy(update={"hash": None})
        return status.model_copy(update={"stages": stages, "prepare": prepare})

    def _with_outputs(self, stage: StageStatus) -> StageStatus:
        """Results whose directory was removed or damaged are no results any more."""
        there = [run for run in stage.finished if self._is_intact(run.checkpoint)]
        return stage if there == stage.finished else stage.model_copy(update={"finished": there})

    def _is_intact(self, checkpoint: CheckpointRef) -> bool:
        manifest = self._checkpoints() / checkpoint.uri / MANIFEST
        try:
            digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
        except OSError:
            return False
        return f"sha256:{digest}" == checkpoint.digest

    def _checkpoints(self) -> Path:
        return self.volumes / claim_name(self.job) / self.job.spec.checkpoints.sub_path

    def _fetched(self) -> list[Path]:
        """Where `prepare` has put remote sources."""
        placed = place(refs_of(self.job.spec, "prepare"))
        inside = [item.path for item in placed if item.path.startswith(f"{CHECKPOINTS}/")]
        return [self._checkpoints() / path.removeprefix(f"{CHECKPOINTS}/") for path in inside]


def annotate(directory: Path, job: RLHFJob, annotations: Mapping[str, str]) -> None:
    """Sets annotations of the job of a run, between two runs. Raises LocalRunError."""
    store = Store(directory, annotated(job, annotations), lambda job: None)
    try:
        store.write(store.status or JobStatus())
    finally:
        store.close()


def _locked(directory: Path) -> Any:
    """The open lock file; the system frees it however this process ends."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / LOCK_FILE).open("a+")
    except OSError as error:
        raise LocalRunError(f"{directory} cannot be used: {error.strerror}.") from None
    if not _taken(lock):
        lock.close()
        raise LocalRunError(
            f"Another run is using {directory}: wait for it, stop it, or give another --dir."
        )
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _taken(lock: Any) -> bool:
    """Whether the lock is ours now. Who only looks at it (`is_in_use`) shares it for a moment, a
    long one where that process gets no core; a run does not share it."""
    refusals, until = 0, time.monotonic() + LOOKERS_S
    while refusals < REFUSALS and time.monotonic() < until:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            refusals += is_locked(Path(lock.name))
            time.sleep(0.02)
        else:
            return True
    return False


def is_in_use(directory: Path) -> bool:
    """Whether a living process works on the directory of a run."""
    return is_locked(directory / LOCK_FILE)


def owner_of(directory: Path) -> int | None:
    """That process; None where nobody does."""
    if not is_in_use(directory):
        return None
    text = (directory / LOCK_FILE).read_text(encoding="ascii", errors="replace")
    return int(text) if text.isdigit() else None


def _previous(path: Path) -> RLHFJob | None:
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
        return kept_job(value)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        cause = str(error.problems[0]) if isinstance(error, InvalidJob) else str(error)
        raise LocalRunError(
            f"{path} cannot be read ({cause.splitlines()[0]}). It tells which stages have "
            "finished: restore it, or remove it to start afresh."
        ) from None


def _continued(job: RLHFJob, previous: RLHFJob | None) -> RLHFJob:
    """The job as an API server would have it: with UID and generation, and approvals as given."""
    if previous is None:
        uid, generation = str(uuid.uuid4()), 1
    else:
        uid = previous.metadata.uid
        generation = previous.metadata.generation + (previous.spec != job.spec)
    update = {"uid": job.metadata.uid or uid, "generation": generation}
    metadata = job.metadata.model_copy(update=update)
    continued = job.model_copy(update={"metadata": metadata, "status": None})
    approvals = _approvals(previous) if previous and uid == previous.metadata.uid else {}
    return annotated(continued, approvals | (job.metadata.annotations or {}))


def _approvals(job: RLHFJob) -> dict[str, str]:
    """Each names the result that it is for, so that those of earlier runs do no harm."""
    given = job.metadata.annotations or {}
    return {key: value for key, value in given.items() if key.startswith(ANNOTATION_APPROVE)}


def annotated(job: RLHFJob, added: Mapping[str, str]) -> RLHFJob:
    """The job with these annotations beside those that it has."""
    if not added:
        return job
    update = {"annotations": {**(job.metadata.annotations or {}), **added}}
    return job.model_copy(update={"metadata": job.metadata.model_copy(update=update)})
