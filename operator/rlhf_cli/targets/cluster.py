"""RLHFJobs of one namespace of a cluster, as the user of a kubeconfig sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

from rlhf_api.fields import suggestion
from rlhf_api.job import RLHFJob
from rlhf_api.status import CheckpointRef
from rlhf_operator.api import Api, ApiError, Resource, pause_after
from rlhf_operator.cluster import RLHFJOBS
from rlhf_operator.names import ANNOTATION_RETRY_STAGE, claim_name

from rlhf_cli.failures import DONE, Failure, Unreadable
from rlhf_cli.program import command
from rlhf_cli.run_folder import RunFolder
from rlhf_cli.targets.cluster_delete import delete
from rlhf_cli.targets.cluster_events import happening
from rlhf_cli.targets.cluster_requests import ClusterRequests
from rlhf_cli.targets.refusals import refusal
from rlhf_cli.targets.target import (
    Going,
    Happening,
    Listing,
    Object,
    Scope,
    all_stages,
)

EVENTS: Final = Resource("v1", "Event", "events")
RETRIES: Final = 5


class ClusterTarget(ClusterRequests):
    """The Target on a cluster, and what only a cluster has: apply, raw requests."""

    def __init__(self, api: Api, namespace: str, flags: Sequence[str]) -> None:
        """`flags`: those that lead here, for commands that the user is told."""
        super().__init__(api, namespace)
        self._flags = list(flags)

    @property
    def place(self) -> str:
        return f"the namespace {self.namespace}"

    @property
    def is_one_job(self) -> bool:
        return False

    def command(self, verb: str, *words: str, job: str) -> str:
        return command(verb, job, *words, *self._flags)

    async def jobs(self, scope: Scope) -> Listing:
        namespace = None if scope.everywhere else self.namespace
        items, _ = await self.listed(RLHFJOBS, namespace, scope.selector)
        return Listing(sorted(items, key=_by_name))

    async def job(self, name: str | None) -> Object:
        assert name is not None
        try:
            return await self.api.get(RLHFJOBS, self.namespace, name)
        except ApiError as error:
            if error.code == 404 and error.reason == "NotFound":
                raise await self._not_found(name) from None
            raise refusal(error, "get", f"rlhfjobs/{name}", self.namespace) from None

    async def watch(self, name: str | None, scope: Scope) -> AsyncIterator[tuple[str, Object]]:
        namespace = None if scope.everywhere else self.namespace
        fields = f"metadata.name={name}" if name else ""
        seen: dict[str, Object] = {}
        was_answered, broken = False, 0
        while True:
            try:
                items, version = await self.api.list(
                    RLHFJOBS, namespace, selector=scope.selector, fields=fields
                )
                if name and not items and not was_answered:
                    raise await self._not_found(name)
                for kind, item in differences(seen, items):
                    yield kind, item
                if name and not items:
                    return
                was_answered, broken = True, 0
                async for kind, item in self.api.watch(
                    RLHFJOBS, namespace, version, selector=scope.selector, fields=fields
                ):
                    if kind == "BOOKMARK":
                        continue
                    _note(seen, kind, item)
                    yield kind, item
                    if name and kind == "DELETED":
                        return
            except ApiError as error:
                broken += 1
                may_pass = was_answered and (error.is_passing or error.code == 410)
                if not may_pass or broken > RETRIES:
                    raise refusal(error, "watch", "rlhfjobs", namespace) from None
                await pause_after(broken - 1)

    async def events(self, job: RLHFJob) -> list[Happening]:
        name = job.metadata.name
        mine, _ = await self.listed(
            EVENTS, self.namespace, fields=f"involvedObject.uid={job.metadata.uid}"
        )
        pods = {pod.name for pod in await self.pods(job)}
        of_pods = []
        if pods:
            listed, _ = await self.listed(EVENTS, self.namespace, fields="involvedObject.kind=Pod")
            of_pods = [item for item in listed if item["involvedObject"].get("name") in pods]
        found = [happening(item, name) for item in [*mine, *of_pods]]
        return sorted(found, key=lambda item: item.time)

    async def is_worked_on(self, job: RLHFJob) -> bool:
        return True

    async def annotate(self, job: RLHFJob, annotations: Mapping[str, str]) -> None:
        await self.patch(job, {"metadata": {"annotations": dict(annotations)}})

    async def suspend(self, job: RLHFJob) -> str:
        await self.patch(job, {"spec": {"suspend": True}})
        return f"{job.metadata.name} is suspended: its pods save, then give their devices back."

    async def resume(self, job: RLHFJob) -> Going:
        await self.patch(job, {"spec": {"suspend": False}})
        return Going(lambda: DONE, f"{job.metadata.name} goes on.")

    async def retry(self, job: RLHFJob, stages: Sequence[str]) -> Going:
        attempts = {name: stage.attempt for name, stage in all_stages(job).items()}
        asked = {f"{ANNOTATION_RETRY_STAGE}{name}": str(attempts[name]) for name in stages}
        await self.annotate(job, asked)
        said = f"{job.metadata.name}: {' and '.join(stages)} gets another try."
        return Going(lambda: DONE, said)

    async def delete(
        self, job: RLHFJob, *, with_checkpoints: bool, wait: bool, force: bool
    ) -> list[str]:
        return await delete(
            self, job, claim_name(job), with_checkpoints=with_checkpoints, wait=wait, force=force
        )

    async def delete_unread(
        self, why: Unreadable, *, with_checkpoints: bool, force: bool
    ) -> list[str]:
        raise why  # it is another version's, whose rlhfctl knows what belongs to it

    def records(self, job: RLHFJob) -> AbstractAsyncContextManager[RunFolder]:
        from rlhf_cli.targets.cluster_files import records

        return records(self, job)

    async def fetch(self, job: RLHFJob, checkpoint: CheckpointRef, folder: Path) -> None:
        from rlhf_cli.targets.cluster_files import fetch

        await fetch(self, job, checkpoint, folder)

    async def _not_found(self, name: str) -> Failure:
        try:
            items, _ = await self.api.list(RLHFJOBS, self.namespace)
        except ApiError:
            items = []
        names = [item["metadata"]["name"] for item in items]
        guess = suggestion(name, names)
        listing = command("list", *self._flags)
        hint = f"did you mean {guess}?" if guess else f"see those that are there: {listing}"
        local = (
            [f"for the run in ./{name}: --dir {name}"] if Path(name, "status.yaml").exists() else []
        )
        return Failure(f"there is no RLHFJob {name} in {self.place}", hint, *local)


def differences(seen: dict[str, Object], items: list[Object]) -> list[tuple[str, Object]]:
    """What a list tells that was not known; `seen` (by UID) is brought up to date."""
    there = {item["metadata"]["uid"]: item for item in items}
    found = [("DELETED", item) for uid, item in seen.items() if uid not in there]
    for uid, item in there.items():
        before = seen.get(uid)
        if before is None:
            found.append(("ADDED", item))
        elif before["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
            found.append(("MODIFIED", item))
    seen.clear()
    seen.update(there)
    return found


def _note(seen: dict[str, Object], kind: str, item: Object) -> None:
    if kind == "DELETED":
        seen.pop(item["metadata"]["uid"], None)
    else:
        seen[item["metadata"]["uid"]] = item


def _by_name(item: Object) -> tuple[str, str]:
    meta: dict[str, Any] = item["metadata"]
    return meta.get("namespace", ""), meta["name"]
