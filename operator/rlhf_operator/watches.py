"""Keeps a kind of objects in the cache: list, watch, and list again where a watch cannot go on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

from rlhf_api.job import KIND

from rlhf_operator.api import Api, ApiError, Object, Resource, pause_after
from rlhf_operator.cache import Cache, version_of
from rlhf_operator.names import LABEL_JOB

log = logging.getLogger(__name__)

JOBS: Final = Resource("batch/v1", "Job", "jobs")
PODS: Final = Resource("v1", "Pod", "pods")
CONFIG_MAPS: Final = Resource("v1", "ConfigMap", "configmaps")
SERVICES: Final = Resource("v1", "Service", "services")
CLAIMS: Final = Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
CHILDREN: Final = (JOBS, PODS, CONFIG_MAPS, SERVICES, CLAIMS)
READ_WHOLE: Final = ("RLHFJob", "Job", "Pod", "Service", "PodGroup", "Workload")
"""Kinds of which more counts than that an object is there."""


class Restored(Exception):
    """What is there is older than what was there before: etcd was restored from a backup.

    All that is known by its version then hides what is true for as long as versions are lower, and
    a watch tells of nothing before they have caught up. Only a new process knows nothing. Where its
    revision was raised with that (`etcdutl snapshot restore --bump-revision`), lists and watches go
    on, and single objects have gone back.
    """


def gone_back(item: Object, known: int) -> Restored:
    """An object that was of another version before."""
    who = f"{item['kind']} {item['metadata']['name']}"
    return Restored(f"{who} was at version {known}, and is at {version_of(item)} now")


class Watch:
    """One kind in one namespace, or in all. Only objects that carry our label, where `selector`."""

    def __init__(
        self,
        api: Api,
        cache: Cache,
        resource: Resource,
        namespace: str | None,
        selector: str = LABEL_JOB,
    ) -> None:
        self.resource = resource
        self.namespace = namespace
        self.selector = selector
        self.heard = time.monotonic()
        self._api = api
        self._cache = cache
        self._failures = 0
        self._newest = 0  # version that was heard of

    @property
    def is_needed(self) -> bool:
        """Whether no pass may be made before it has been seen. Kinds of gang schedulers come and
        go, and an operator may have no right to those of the others."""
        return self.resource in CHILDREN or self.resource.kind == KIND

    @property
    def age(self) -> float:
        """Seconds since an event, a bookmark, a list or an error; minutes of it are a hang."""
        return time.monotonic() - self.heard

    async def run(self) -> None:
        """Never ends by itself, however long the API server is away."""
        while True:
            try:
                await self._follow(await self.refresh())
            except ApiError as error:
                self.heard = time.monotonic()
                self._report(error)
            await pause_after(self._failures)

    async def refresh(self) -> int:
        """Takes in all that is there now, and gives the version of it. Raises Restored.

        Safe beside `run`, which may hear of more before the answer comes.
        """
        before = self._newest
        items, version = await self._api.list(
            self.resource,
            self.namespace,
            selector=self.selector,
            metadata_only=self.resource.kind not in READ_WHOLE,
        )
        if version < before:
            what = f"{self.resource.plural} were at version {before}"
            raise Restored(f"{what}, and are at {version} now")
        for item in items:
            if version_of(item) < (known := self._cache.version(item)) <= version:
                raise gone_back(item, known)
        self._newest = max(version, self._newest)
        self._cache.replace(self.resource, self.namespace, items, version)
        self.heard = time.monotonic()
        return version

    async def _follow(self, version: int) -> None:
        """Watches from where the last watch ended, until the server cannot go on from there."""
        while True:
            events = self._api.watch(
                self.resource,
                self.namespace,
                version,
                selector=self.selector,
                metadata_only=self.resource.kind not in READ_WHOLE,
            )
            async for kind, item in events:
                self.heard = time.monotonic()
                self._failures = 0
                version = self._newest = int(item["metadata"]["resourceVersion"])
                if kind == "DELETED":
                    self._cache.remove(item, version)
                elif kind != "BOOKMARK":
                    self._cache.put(item)
            await asyncio.sleep(0.1)

    def _report(self, error: ApiError) -> None:
        """One line when it begins; a watch that has expired is nothing to report."""
        if error.code != 410 and self._failures == 0:
            where = self.namespace or "all namespaces"
            log.warning("Watching %s in %s: %s", self.resource.plural, where, error)
        self._failures += error.code != 410


async def refresh_all(watches: Sequence[Watch]) -> None:
    """Waits until everything has been seen as it is now, trying again for as long as it takes."""
    failures = 0
    waiting = list(watches)
    while waiting:
        results = await asyncio.gather(*(w.refresh() for w in waiting), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, ApiError):
                raise result
        pairs = zip(waiting, results, strict=True)
        errors = [(w, r) for w, r in pairs if isinstance(r, ApiError) and not _may_miss(w, r)]
        waiting = [watch for watch, _ in errors]
        if waiting:
            if failures == 0:
                log.warning("Listing %s: %s", waiting[0].resource.plural, errors[0][1])
            failures += 1
            await pause_after(failures)


def _may_miss(watch: Watch, error: ApiError) -> bool:
    """Whether there is nothing to see, nothing that this operator may see, or nothing before
    somebody has mended a gang scheduler: 500 where its conversion webhook is away."""
    return error.code in (403, 404, 500) and not watch.is_needed
