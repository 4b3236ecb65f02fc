"""What the commands ask of the place where jobs are; a cluster and a directory both answer it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rlhf_api.job import RLHFJob
from rlhf_api.status import CheckpointRef, JobStatus
from rlhf_api.validation import InvalidJob, kept_job
from rlhf_operator.names import CONTAINER_NAME

from rlhf_cli.failures import Failure, Unreadable, told_problems
from rlhf_cli.run_folder import RunFolder

Object = dict[str, Any]
"""An RLHFJob as it is kept, decoded."""


class Scope(NamedTuple):
    """Which jobs are listed."""

    selector: str = ""  # labels, as kubectl's -l
    everywhere: bool = False  # all namespaces


class Listing(NamedTuple):
    """Jobs, and why others that are there too are not among them."""

    items: list[Object]
    unread: Sequence[Failure] = ()


class PodView(NamedTuple):
    """One pod of a job."""

    name: str
    stage: str
    attempt: int
    completion_index: int
    phase: str
    node: str = ""
    reason: str = ""  # why it waits, or how it ended
    is_over: bool = False
    container: str = CONTAINER_NAME  # whose log it is: others may have added more


class Happening(NamedTuple):
    """An event; `time` is RFC 3339."""

    time: str
    type: str
    reason: str
    message: str
    about: str = ""  # the pod, where it is not the job itself
    times: int = 1


class Going(NamedTuple):
    """A job that goes on."""

    afterwards: Callable[[], int]  # what is left to do once the target is closed: the exit code
    said: str = ""  # what was done; nothing where all is still to be done


class LogOptions(NamedTuple):
    """Which part of a pod's log."""

    follow: bool = False
    tail: int | None = None
    since: int | None = None  # seconds
    timestamps: bool = False


class Target(Protocol):
    """Methods raise Failure. A name that is None is allowed where there is only one job."""

    @property
    def place(self) -> str:
        """For sentences: `the namespace research`, `runs/demo`."""

    @property
    def is_one_job(self) -> bool:
        """Whether it can only be one: a run's directory."""

    def command(self, verb: str, *words: str, job: str) -> str:
        """A command of this program on one of these jobs, for the user to copy."""

    async def jobs(self, scope: Scope) -> Listing:
        """All of them, by namespace and name."""

    async def job(self, name: str | None) -> Object:
        """One of them."""

    def watch(self, name: str | None, scope: Scope) -> AsyncIterator[tuple[str, Object]]:
        """(ADDED | MODIFIED | DELETED, job): first those that are there, then each change.

        A watch on one job ends after its deletion; on a run here, when nothing works on it.
        """

    def watch_all(self, scope: Scope) -> AsyncIterator[tuple[str, Object]]:
        """The same of all jobs; of the runs of a directory, until nobody works on any."""

    async def events(self, job: RLHFJob) -> list[Happening]:
        """Oldest first; those of its pods, too."""

    def follow_events(self, job: RLHFJob) -> AsyncIterator[list[Happening]]:
        """The same, again after each change; ends where nothing more will happen."""

    async def pods(self, job: RLHFJob) -> list[PodView]:
        """By stage, attempt and index."""

    def follow_pods(self, job: RLHFJob) -> AsyncIterator[list[PodView]]:
        """The same, again after each change."""

    def log(self, pod: PodView, options: LogOptions) -> AsyncIterator[str]:
        """Its lines."""

    async def is_worked_on(self, job: RLHFJob) -> bool:
        """Whether somebody acts on it: on a cluster always, here while a run uses the directory."""

    async def annotate(self, job: RLHFJob, annotations: Mapping[str, str]) -> None:
        """Sets annotations of this very job: not of one that was made anew under its name."""

    async def suspend(self, job: RLHFJob) -> str:
        """Has it stop and save; a sentence that says what was done."""

    async def resume(self, job: RLHFJob) -> Going:
        """Lets it go on."""

    async def retry(self, job: RLHFJob, stages: Sequence[str]) -> Going:
        """Gives failed stages another try."""

    async def kill(self, job: RLHFJob) -> None:
        """Ends its processes without waiting for them to save."""

    async def delete(
        self, job: RLHFJob, *, with_checkpoints: bool, wait: bool, force: bool
    ) -> list[str]:
        """Removes it; what was removed and what was kept, in sentences.

        `force`: its processes end at once, and a run here may be one that goes on.
        """

    async def delete_unread(
        self, why: Unreadable, *, with_checkpoints: bool, force: bool
    ) -> list[str]:
        """Removes what could not be read, where it can be told apart without that."""

    def records(self, job: RLHFJob) -> AbstractAsyncContextManager[RunFolder]:
        """A folder with what its trainers recorded: metrics, answers, versions."""

    async def fetch(self, job: RLHFJob, checkpoint: CheckpointRef, folder: Path) -> None:
        """Brings the files of a committed checkpoint to a folder of this machine."""


def parsed(item: Object) -> RLHFJob:
    """The job of an object. Raises Failure where another version has written it."""
    try:
        return kept_job(item)
    except InvalidJob as error:
        name = (item.get("metadata") or {}).get("name", "")
        raise Unreadable(
            f"this version cannot read the RLHFJob {name}:",
            *told_problems(error.problems),
            "use the rlhfctl of the operator's version",
        ) from None


def ending(job: RLHFJob) -> str | None:
    """Ready or Stalled, where that holds for what the spec says now; None while it goes on."""
    status = job.status or JobStatus()
    if status.observed_generation != job.metadata.generation:
        return None
    found = [c.type for c in status.conditions if c.status == "True"]
    return next((kind for kind in ("Ready", "Stalled") if kind in found), None)
