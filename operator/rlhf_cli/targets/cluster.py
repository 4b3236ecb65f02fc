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
from rlhf_operator.names import ANNOTATION_RETRY_STAGE, LABEL_JOB, claim_name

from rlhf_cli.failures import DONE, Failure
from rlhf_cli.program import command
from rlhf_cli.run_folder import RunFolder
from rlhf_cli.targets.cluster_events import happening
from rlhf_cli.targets.cluster_pods import pod_view
from rlhf_cli.targets.refusals import VERBS, refusal
from rlhf_cli.targets.target import (
    Going,
    Happening,
    LogOptions,
    Object,
    PodView,
    Scope,
    all_stages,
)

FIELD_MANAGER: Final = "rlhfctl"
MERGE: Final = "application/merge-patch+json"
APPLY: Final = "application/apply-patch+yaml"
PODS: Final = Resource("v1", "Pod", "pods")
EVENTS: Final = Resource("v1", "Event", "events")
CLAIMS: Final = Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
RETRIES: Final = 5


class ClusterTarget:
    """The Target on a cluster, and what only a cluster has: apply, raw requests."""

    def __init__(self, api: Api, namespace: str, flags: Sequence[str]) -> None:
        """`flags`: those that lead here, for commands that the user is told."""
        self.api = api
        self.namespace = namespace
        self._flags = list(flags)

    @property
    def place(self) -> str:
        return f"the namespace {self.namespace}"

    @property
    def is_one_job(self) -> bool:
        return False

    def command(self, verb: str, *words: str, job: str) -> str:
        return command(verb, job, *words, *self._flags)

    async def jobs(self, scope: Scope) -> list[Object]:
        namespace = None if scope.everywhere else self.namespace
        items, _ = await self._listed(RLHFJOBS, namespace, scope.selector)
        return sorted(items, key=_by_name)

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
        mine, _ = await self._listed(
            EVENTS, self.namespace, fields=f"involvedObject.uid={job.metadata.uid}"
        )
        pods = {pod.name for pod in await self.pods(job)}
        of_pods = []
        if pods:
            listed, _ = await self._listed(EVENTS, self.namespace, fields="involvedObject.kind=Pod")
            of_pods = [item for item in listed if item["involvedObject"].get("name") in pods]
        found = [happening(item, name) for item in [*mine, *of_pods]]
        return sorted(found, key=lambda item: item.time)

    async def pods(self, job: RLHFJob) -> list[PodView]:
        items = await self.raw_pods(f"{LABEL_JOB}={job.metadata.name}")
        views = [view for item in items if (view := pod_view(item))]
        return sorted(views, key=lambda view: (view.stage, view.attempt, view.completion_index))

    async def log(self, pod: PodView, options: LogOptions) -> AsyncIterator[str]:
        asked = {
            "follow": "true" if options.follow else "",
            "tailLines": "" if options.tail is None else str(options.tail),
            "sinceSeconds": str(options.since or ""),
            "timestamps": "true" if options.timestamps else "",
            "previous": "true" if options.previous else "",
        }
        query = {key: value for key, value in asked.items() if value}
        path = PODS.path(self.namespace, pod.name, "log")
        try:
            async for line in self.api.lines(path, query, "pods/log"):
                yield line.decode("utf-8", "replace").rstrip("\r")
        except ApiError as error:
            raise refusal(error, "get", "pods/log", self.namespace) from None

    async def is_worked_on(self, job: RLHFJob) -> bool:
        return True

    async def annotate(self, job: RLHFJob, annotations: Mapping[str, str]) -> None:
        await self._patch(job, {"metadata": {"annotations": dict(annotations)}})

    async def suspend(self, job: RLHFJob) -> str:
        await self._patch(job, {"spec": {"suspend": True}})
        return f"{job.metadata.name} is suspended: its pods save, then give their devices back."

    async def resume(self, job: RLHFJob) -> Going:
        await self._patch(job, {"spec": {"suspend": False}})
        return Going(lambda: DONE, f"{job.metadata.name} goes on.")

    async def retry(self, job: RLHFJob, stages: Sequence[str]) -> Going:
        attempts = {name: stage.attempt for name, stage in all_stages(job).items()}
        asked = {f"{ANNOTATION_RETRY_STAGE}{name}": str(attempts[name]) for name in stages}
        await self.annotate(job, asked)
        said = f"{job.metadata.name}: {' and '.join(stages)} gets another try."
        return Going(lambda: DONE, said)

    async def kill(self, job: RLHFJob) -> None:
        for pod in await self.pods(job):
            if not pod.is_over:
                body = {"gracePeriodSeconds": 0}
                path = PODS.path(self.namespace, pod.name)
                await self.request("DELETE", path, body=body, what=f"pods/{pod.name}")

    async def delete(
        self, job: RLHFJob, *, with_checkpoints: bool, wait: bool, force: bool
    ) -> list[str]:
        from rlhf_cli.targets.cluster_delete import delete

        return await delete(
            self, job, claim_name(job), with_checkpoints=with_checkpoints, wait=wait, force=force
        )

    def records(self, job: RLHFJob) -> AbstractAsyncContextManager[RunFolder]:
        from rlhf_cli.targets.cluster_files import records

        return records(self, job)

    async def fetch(self, job: RLHFJob, checkpoint: CheckpointRef, folder: Path) -> None:
        from rlhf_cli.targets.cluster_files import fetch

        await fetch(self, job, checkpoint, folder)

    # What only a cluster has

    async def raw_pods(self, selector: str) -> list[Object]:
        """Pods by their labels, as the API server has them."""
        items, _ = await self._listed(PODS, self.namespace, selector)
        return items

    async def raw_pod(self, name: str) -> Object:
        """One of them."""
        return await self.request("GET", PODS.path(self.namespace, name), what=f"pods/{name}")

    async def apply(self, body: Object, *, dry_run: bool, force: bool) -> Object:
        """Server-side apply as rlhfctl. ApiError 409 tells who else owns a field."""
        meta = body["metadata"]
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        query |= {"dryRun": "All"} if dry_run else {}
        query |= {"force": "true"} if force else {}
        path = RLHFJOBS.path(self.namespace, meta["name"])
        return await self.api.request("PATCH", path, query, body, APPLY, label="rlhfjobs")

    async def request(
        self, method: str, path: str, body: Object | None = None, *, what: str, kind: str = ""
    ) -> Object:
        """Any other request. Raises Failure."""
        query = {"fieldManager": FIELD_MANAGER} if body and method in ("POST", "PATCH") else {}
        try:
            return await self.api.request(method, path, query, body, kind or "application/json")
        except ApiError as error:
            raise refusal(error, VERBS[method], what, self.namespace) from None

    async def _patch(self, job: RLHFJob, change: Object) -> None:
        name = job.metadata.name
        meta = {"uid": job.metadata.uid, **change.get("metadata", {})}
        path = RLHFJOBS.path(self.namespace, name)
        body = {**change, "metadata": meta}
        await self.request("PATCH", path, body, what=f"rlhfjobs/{name}", kind=MERGE)

    async def _listed(
        self, resource: Resource, namespace: str | None, selector: str = "", fields: str = ""
    ) -> tuple[list[Object], int]:
        try:
            return await self.api.list(resource, namespace, selector=selector, fields=fields)
        except ApiError as error:
            raise refusal(error, "list", resource.plural, namespace) from None

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
