"""Runs in directories of this machine (`rlhfctl run --dir DIR`), by the verbs of a cluster."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from rlhf_api.job import RLHFJob
from rlhf_api.status import CheckpointRef
from rlhf_operator.local import LocalRunError, annotate
from rlhf_operator.local.pods import LocalPod
from rlhf_operator.local.store import is_in_use, owner_of

from rlhf_cli.failures import CHECKPOINT, TRANSIENT, Failure, Unreadable
from rlhf_cli.object_store import bring_checkpoint, bring_records
from rlhf_cli.output import place_of, placed
from rlhf_cli.program import command
from rlhf_cli.run_folder import EVENTS_FILE, STATUS_FILE, RunFolder
from rlhf_cli.targets.directory_delete import delete
from rlhf_cli.targets.directory_stop import ask_to_stop, stopped
from rlhf_cli.targets.target import Going, Happening, Listing, LogOptions, Object, PodView, Scope

LOOK_EVERY: Final = 0.3
"""Seconds between two looks at a file."""
LOOK_AROUND_EVERY: Final = 2.0
"""Seconds between two looks at all pods, or events."""


class Directory:
    """The Target in a directory: of one run, or of several that stand beside each other."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.folder = RunFolder(self.path)

    @property
    def place(self) -> str:
        return str(self.path)

    @property
    def is_one_job(self) -> bool:
        return (self.path / STATUS_FILE).is_file()

    def command(self, verb: str, *words: str, job: str) -> str:
        return command(verb, *words, "--dir", str(self.path))

    async def jobs(self, scope: Scope) -> Listing:
        if scope.selector:
            raise Failure("-l selects by labels, which runs on this machine do not have")
        items: list[Object] = []
        unread: list[Failure] = []
        for run in map(RunFolder, self._runs()):
            try:
                items.append(placed(run.document(), run.path))
            except Failure as failure:
                unread.append(failure)
        return Listing(items, unread)

    def _runs(self) -> list[Path]:
        if not self.path.is_dir():
            raise Failure(f"there is no directory {self.path}")
        folders = [self.path, *sorted(path for path in self.path.iterdir() if path.is_dir())]
        return [path for path in folders if (path / STATUS_FILE).is_file()]

    def _is_worked_on(self) -> bool:
        return is_in_use(self.path)

    async def job(self, name: str | None) -> Object:
        return self.folder.document()

    async def watch(self, name: str | None, scope: Scope) -> AsyncIterator[tuple[str, Object]]:
        item = self.folder.document()
        yield "ADDED", item
        async for _ in _looks(self._is_worked_on, LOOK_EVERY):
            newest = self.folder.document()
            if newest != item:
                item = newest
                yield "MODIFIED", item

    async def watch_all(self, scope: Scope) -> AsyncIterator[tuple[str, Object]]:
        seen: dict[str, Object] = {}
        async for _ in _looks(lambda: any(map(is_in_use, self._runs())), LOOK_AROUND_EVERY):
            for item in (await self.jobs(scope)).items:
                before = seen.get(place_of(item))
                if item != before:
                    seen[place_of(item)] = item
                    yield "MODIFIED" if before else "ADDED", item

    async def events(self, job: RLHFJob) -> list[Happening]:
        try:
            lines = (self.path / EVENTS_FILE).read_text("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return []
        return [Happening(**item) for line in lines if isinstance(item := _decoded(line), dict)]

    async def follow_events(self, job: RLHFJob) -> AsyncIterator[list[Happening]]:
        async for _ in _looks(self._is_worked_on, LOOK_AROUND_EVERY):
            yield await self.events(job)

    async def follow_pods(self, job: RLHFJob) -> AsyncIterator[list[PodView]]:
        async for _ in _looks(self._is_worked_on, LOOK_AROUND_EVERY):
            yield await self.pods(job)

    async def pods(self, job: RLHFJob) -> list[PodView]:
        found = []
        for pod in self._pods(job.metadata.uid):
            seen = pod.observed()
            record, code = pod.record, seen.exit_code
            reason = seen.reason or (f"Error ({code})" if code else "")
            found.append(
                PodView(
                    seen.name,
                    record.stage,
                    record.attempt,
                    record.completion_index,
                    seen.phase,
                    "this machine",
                    reason,
                    not pod.is_live and pod.was_started,
                )
            )
        return sorted(found, key=lambda view: (view.stage, view.attempt, view.completion_index))

    def _pods(self, uid: str | None) -> list[LocalPod]:
        """Those of a job; of whichever jobs with None."""
        found = map(LocalPod.read, sorted((self.path / "pods").glob("*")))
        return [pod for pod in found if pod and uid in (None, pod.record.uid)]

    async def log(self, pod: PodView, options: LogOptions) -> AsyncIterator[str]:
        if options.since or options.timestamps:
            raise Failure("logs on this machine know no times: leave out --since and --timestamps")
        file = self.path / "pods" / pod.name / "log.txt"
        skip, rest = _offset(file, options.tail), b""
        is_over = False
        while True:
            if file.exists():
                with file.open("rb") as stream:
                    stream.seek(skip)
                    block = stream.read()
                skip += len(block)
                *whole, rest = (rest + block).split(b"\n")
                for line in whole:
                    yield line.decode("utf-8", "replace")
            if is_over or not options.follow:
                break
            found = LocalPod.read(file.parent)
            is_over = found is None or self._is_over(found)
            await asyncio.sleep(0 if is_over else LOOK_EVERY)
        if rest:
            yield rest.decode("utf-8", "replace")

    def _is_over(self, pod: LocalPod) -> bool:
        """Whether nothing more will come of it that belongs to the run."""
        has_ended = pod.was_started and not pod.is_live
        return has_ended or (pod.is_orphaned and not is_in_use(self.path))

    async def is_worked_on(self, job: RLHFJob) -> bool:
        return is_in_use(self.path)

    async def annotate(self, job: RLHFJob, annotations: Mapping[str, str]) -> None:
        try:
            annotate(self.path, job, annotations)
        except LocalRunError as error:
            raise Failure(str(error), exit_code=TRANSIENT) from None

    async def suspend(self, job: RLHFJob) -> str:
        again = self.command("resume", job=job.metadata.name)
        if not is_in_use(self.path):
            return f"Nothing runs in {self.path}. To go on: {again}"
        ask_to_stop(self.path)
        return f"The run in {self.path} saves its state, then stops. To go on: {again}"

    async def resume(self, job: RLHFJob) -> Going:
        return Going(lambda: self._run_again(job))

    async def retry(self, job: RLHFJob, stages: Sequence[str]) -> Going:
        return Going(lambda: self._run_again(job))

    def _run_again(self, job: RLHFJob) -> int:
        """In the foreground, as `rlhfctl run` does: a run is a process of the user's."""
        from rlhf_cli.running import run_here

        if owner := owner_of(self.path):
            raise Failure(
                f"process {owner} works on {self.path} already: follow it with "
                f"{self.command('watch', job=job.metadata.name)}",
                exit_code=TRANSIENT,
            )
        spec = job.spec.model_copy(update={"suspend": False})
        again = self.command("resume", job=job.metadata.name)
        return run_here(job.model_copy(update={"spec": spec}), self.folder, again, False)

    async def kill(self, job: RLHFJob) -> None:
        await self._kill(self._pods(job.metadata.uid))

    async def _kill(self, pods: Sequence[LocalPod]) -> None:
        if is_in_use(self.path):
            ask_to_stop(self.path)
            for pod in pods:
                if pod.is_live:
                    pod.kill()

    async def delete(
        self, job: RLHFJob, *, with_checkpoints: bool, wait: bool, force: bool
    ) -> list[str]:
        if force:
            await self.kill(job)
            await stopped(self.path)
        return delete(self.folder, job, with_checkpoints)

    async def delete_unread(
        self, why: Unreadable, *, with_checkpoints: bool, force: bool
    ) -> list[str]:
        if with_checkpoints:
            raise Failure(
                *why.lines,
                f"so nothing tells which folders in {self.path / 'volumes'} are the run's own: "
                "leave out --checkpoints, and delete them yourself",
            )
        if force:
            await self._kill(self._pods(None))
            await stopped(self.path)
        return delete(self.folder, None, False)

    @asynccontextmanager
    async def records(self, job: RLHFJob) -> AsyncIterator[RunFolder]:
        bring_records(self.folder, job)
        yield self.folder

    async def fetch(self, job: RLHFJob, checkpoint: CheckpointRef, folder: Path) -> None:
        bring_checkpoint(self.folder, job, checkpoint)
        source = self.folder.checkpoint(job, checkpoint)
        if not source.is_dir():
            raise Failure(f"{source} is gone; run the manifest again", exit_code=CHECKPOINT)
        await asyncio.to_thread(shutil.copytree, source, folder, dirs_exist_ok=True)


def _decoded(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:  # cut short by a kill
        return None


async def _looks(is_worked_on: Callable[[], bool], every: float) -> AsyncIterator[None]:
    """Now, and again after so many seconds, until nobody works on it any more."""
    while True:
        was_worked_on = is_worked_on()  # before the look: the last change is seen
        yield
        if not was_worked_on:
            return
        await asyncio.sleep(every)


def _offset(file: Path, tail: int | None) -> int:
    """Where the last lines of a file begin."""
    if tail is None or not file.exists():
        return 0
    text = file.read_bytes()
    end = len(text) - text.endswith(b"\n")
    for _ in range(tail):
        end = text.rfind(b"\n", 0, end)
        if end < 0:
            return 0
    return min(end + 1, len(text))
