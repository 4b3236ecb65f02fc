"""Requests about one namespace of a cluster. Methods raise Failure in the user's words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from rlhf_api.job import RLHFJob
from rlhf_operator.api import Api, ApiError, Resource
from rlhf_operator.cluster import RLHFJOBS
from rlhf_operator.names import LABEL_JOB

from rlhf_cli.targets.cluster_follow import LISTED, followed
from rlhf_cli.targets.cluster_pods import pod_views
from rlhf_cli.targets.refusals import VERBS, refusal
from rlhf_cli.targets.target import LogOptions, Object, PodView

FIELD_MANAGER: Final = "rlhfctl"
MERGE: Final = "application/merge-patch+json"
APPLY: Final = "application/apply-patch+yaml"
PODS: Final = Resource("v1", "Pod", "pods")


def of_job(job: RLHFJob) -> str:
    """The selector of its pods."""
    return f"{LABEL_JOB}={job.metadata.name}"


class ClusterRequests:
    """What all that is done on a cluster is made of."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.api = api
        self.namespace = namespace

    async def pods(self, job: RLHFJob) -> list[PodView]:
        """A job's, by stage, attempt and index."""
        return pod_views(await self.raw_pods(of_job(job)))

    async def follow_pods(self, job: RLHFJob) -> AsyncIterator[list[PodView]]:
        """The same, again after each change."""
        pods: dict[str, Object] = {}
        is_listed = False
        async for kind, pod in followed(self.api, PODS, self.namespace, selector=of_job(job)):
            if kind == LISTED:
                is_listed = True
            elif kind == "DELETED":
                pods.pop(pod["metadata"]["uid"], None)
            else:
                pods[pod["metadata"]["uid"]] = pod
            if is_listed:
                yield pod_views(pods.values())

    async def log(self, pod: PodView, options: LogOptions) -> AsyncIterator[str]:
        """Lines of a pod's log."""
        asked = {
            "container": pod.container,
            "follow": "true" if options.follow else "",
            "tailLines": "" if options.tail is None else str(options.tail),
            "sinceSeconds": str(options.since or ""),
            "timestamps": "true" if options.timestamps else "",
        }
        query = {key: value for key, value in asked.items() if value}
        path = PODS.path(self.namespace, pod.name, "log")
        try:
            async for line in self.api.lines(path, query, "pods/log"):
                yield line.decode("utf-8", "replace").rstrip("\r")
        except ApiError as error:
            raise refusal(error, "get", "pods/log", self.namespace) from None

    async def kill(self, job: RLHFJob) -> None:
        """Ends a job's pods without letting them save."""
        for pod in await self.pods(job):
            if not pod.is_over:
                body = {"gracePeriodSeconds": 0}
                path = PODS.path(self.namespace, pod.name)
                await self.request("DELETE", path, body=body, what=f"pods/{pod.name}")

    async def raw_pods(self, selector: str) -> list[Object]:
        """Pods by their labels, as the API server has them."""
        items, _ = await self.listed(PODS, self.namespace, selector)
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

    async def patch(self, job: RLHFJob, change: Object) -> None:
        """Changes this very job: not one that was made anew under its name."""
        name = job.metadata.name
        meta = {"uid": job.metadata.uid, **change.get("metadata", {})}
        path = RLHFJOBS.path(self.namespace, name)
        body = {**change, "metadata": meta}
        await self.request("PATCH", path, body, what=f"rlhfjobs/{name}", kind=MERGE)

    async def listed(
        self, resource: Resource, namespace: str | None, selector: str = "", fields: str = ""
    ) -> tuple[list[Object], int]:
        """Objects of a kind, and a version to watch from; of all namespaces with None."""
        try:
            return await self.api.list(resource, namespace, selector=selector, fields=fields)
        except ApiError as error:
            raise refusal(error, "list", resource.plural, namespace) from None
