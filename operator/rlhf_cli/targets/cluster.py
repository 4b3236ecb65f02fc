"""RLHFJobs of one namespace of a cluster, as the user of a kubeconfig sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from rlhf_api.fields import suggestion
from rlhf_api.job import RLHFJob
from rlhf_api.status import CheckpointRef
from rlhf_operator.api import Api, ApiError
from rlhf_operator.cluster import RLHFJOBS
from rlhf_operator.names import ANNOTATION_RETRY_STAGE, claim_name

from rlhf_cli.failures import DONE, Failure, Unreadable
from rlhf_cli.program import command
from rlhf_cli.run_folder import RunFolder, hint_of_a_run
from rlhf_cli.targets.cluster_delete import delete
from rlhf_cli.targets.cluster_events import events, follow_events
from rlhf_cli.targets.cluster_follow import LISTED, followed
from rlhf_cli.targets.cluster_requests import ClusterRequests
from rlhf_cli.targets.refusals import refusal
from rlhf_cli.targets.target import (
    Going,
    Happening,
    Listing,
    Object,
    Scope,
)


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
        was_seen = False
        changes = followed(self.api, RLHFJOBS, namespace, selector=scope.selector, fields=fields)
        async for kind, item in changes:
            if kind == LISTED:
                if name and not was_seen:
                    raise await self._not_found(name)
                continue
            was_seen = True
            yield kind, item
            if name and kind == "DELETED":
                return

    def watch_all(self, scope: Scope) -> AsyncIterator[tuple[str, Object]]:
        return self.watch(None, scope)

    async def events(self, job: RLHFJob) -> list[Happening]:
        return await events(self, job)

    def follow_events(self, job: RLHFJob) -> AsyncIterator[list[Happening]]:
        return follow_events(self, job)

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
        attempts = {name: stage.attempt for name, stage in job.stage_statuses().items()}
        asked = {f"{ANNOTATION_RETRY_STAGE}{name}": str(attempts[name]) for name in stages}
        await self.annotate(job, asked)
        verb = "gets" if len(stages) == 1 else "get"
        said = f"{job.metadata.name}: {' and '.join(stages)} {verb} another try."
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
        return Failure(f"there is no RLHFJob {name} in {self.place}", hint, *hint_of_a_run(name))


def _by_name(item: Object) -> tuple[str, str]:
    meta: dict[str, Any] = item["metadata"]
    return meta.get("namespace", ""), meta["name"]
