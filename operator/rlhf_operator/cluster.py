"""The Cluster interface on Kubernetes: reads from the cache, writes to the API server.

Every answer to a write enters the cache before the next pass looks, so a watch that lags behind
never makes a pass do again what was done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from rlhf_api.job import GROUP, KIND, PLURAL, VERSION, RLHFJob
from rlhf_api.run import PREPARE
from rlhf_api.status import Condition, JobStatus, SchedulingStatus

from rlhf_operator.api import Api, ApiError, Object, Resource
from rlhf_operator.cache import Cache, version_of
from rlhf_operator.children import Children, key_of
from rlhf_operator.controller import OutOfDate, Refused, StatusRefused, status_of
from rlhf_operator.discovery import Served
from rlhf_operator.event_object import event_object
from rlhf_operator.events import Event, status_refused
from rlhf_operator.kueue import is_workload
from rlhf_operator.mending import Mender
from rlhf_operator.names import ANNOTATION_GANG, JobKey, child_name
from rlhf_operator.observe import attempts, hides_pods, left_over
from rlhf_operator.observe_pod import next_look
from rlhf_operator.observed import Attempt, Observed, Progress
from rlhf_operator.ownership import attempt_of, controller_uid
from rlhf_operator.refusals import Asked, Refusals
from rlhf_operator.refused_pods import EVENTS, LOOK_AGAIN, RefusedPods
from rlhf_operator.render import Platform
from rlhf_operator.render.defaults import default_image
from rlhf_operator.render.gang import gang_choice, made_kinds
from rlhf_operator.server_clock import Clock, own_clock
from rlhf_operator.settle import is_under_way
from rlhf_operator.waiting import is_fresh, is_unseen, misses_pods
from rlhf_operator.watches import gone_back

log = logging.getLogger(__name__)

RLHFJOBS: Final = Resource(f"{GROUP}/{VERSION}", KIND, PLURAL)
ORPHAN: Final = "orphan"
"""Finalizer of the garbage collector (metav1.FinalizerOrphanDependents)."""

WRITING: Final = "Writing the status of"
TRIES: Final = 8
"""How often a status is sent where others are faster with what no pass goes by."""

Reports = Callable[[JobKey], Mapping[tuple[str, int], Progress]]
OnStatus = Callable[[JobStatus, JobStatus], None]


class KubernetesCluster:
    """All that passes need of Kubernetes, through one API client and one cache."""

    def __init__(
        self,
        api: Api,
        cache: Cache,
        platform: Platform,
        served: Served,
        reports: Reports = lambda key: {},
        on_status: OnStatus = lambda before, after: None,
        instance: str = "rlhf-operator",
        clock: Clock = own_clock,
    ) -> None:
        """`served`: resources by apiVersion and kind. `reports`: what trainers said.

        `on_status` is told of each status that was written, and of the one before it. `instance`
        names this process in events. `clock`: that by which what is there was dated.
        """
        self.now = clock
        self.platform = platform
        self._api = api
        self._mender = Mender(api, clock)
        self._refused = RefusedPods(api)
        self._refusals = Refusals(clock)
        self.children = Children(api, cache, self._mender, served, clock)
        self._cache = cache
        self._reports = reports
        self._on_status = on_status
        self._instance = instance

    async def load(self, key: JobKey) -> dict[str, Any] | None:
        """From the cache. One that was deleted, and is still there, has finalizers; of one that
        goes without its children (`kubectl delete --cascade=orphan`) these are left alone."""
        manifest = self._cache.job(key)
        if manifest is None or ORPHAN in (manifest["metadata"].get("finalizers") or ()):
            return None
        return manifest

    async def observe(self, job: RLHFJob, now: datetime) -> Observed:
        """From the cache, too; but where there are pods that were never seen, they are asked for:
        the watch of Jobs may be ahead of that of pods, which tell how it ended, and somebody may
        have taken a label from them."""
        key = key_of(job)
        found = self._attempts(job, now)
        hidden = [a for a in found if self._hides_pods(job, a, now)]
        if hidden:
            found = await self._with_hidden(job, hidden, now)
        found = tuple([await self._with_refusal(job, attempt, now) for attempt in found])
        others = self._cache.others(key, ("Job", "Pod"))
        gang = gang_choice(job.spec.scheduling, self.platform)
        return Observed(
            left_over=left_over(job.metadata.name, job.metadata.uid, others, found),
            attempts=tuple(a._replace(is_whole=self._is_whole(job, a, now)) for a in found),
            progress=self._reports(key),
            scheduling=SchedulingStatus(gang=gang.name, reason=gang.why),
            image=default_image(self.platform.defaults),
        )

    async def _with_hidden(
        self, job: RLHFJob, hidden: Sequence[Attempt], now: datetime
    ) -> tuple[Attempt, ...]:
        """All attempts, now that those pods were asked for."""
        jobs = [item for attempt in hidden if (item := self._workload(job, attempt))]
        lost = await self.children.pods_of(jobs) if jobs else []
        if len(jobs) < len(hidden):
            await self.children.ask_for_pods(key_of(job))
        names = {item["metadata"]["name"] for item in lost}
        return tuple(
            a._replace(unlabelled=tuple(pod.name for pod in a.pods if pod.name in names))
            for a in self._attempts(job, now, lost)
        )

    def _attempts(
        self, job: RLHFJob, now: datetime, lost: Sequence[Object] = ()
    ) -> tuple[Attempt, ...]:
        key = key_of(job)
        return attempts(
            job.metadata.name,
            job.metadata.uid,
            self._cache.children(key, "Job"),
            [*self._cache.children(key, "Pod"), *lost],
            now,
            [item for item in self._cache.children(key, "Workload") if is_workload(item)],
            self._cache.departed(key),
        )

    def _hides_pods(self, job: RLHFJob, attempt: Attempt, now: datetime) -> bool:
        """Whether an attempt has pods that were not seen, and that count: by how they ended, or as
        they have yet to. Of those that were just made, a watch is about to tell."""
        status = (job.status or JobStatus()).of(attempt.stage)
        is_over = attempt.has_ended or attempt.condition is not None
        is_newest = attempt.number == status.attempt and is_under_way(status)
        if (is_over and not is_newest) or (not is_over and is_fresh(attempt, now)):
            return False
        seen = len(self._pods(job, attempt))
        return hides_pods(attempt, self._workload(job, attempt), seen)

    def _workload(self, job: RLHFJob, attempt: Attempt) -> Object | None:
        name = child_name(job.metadata.name, attempt.stage, attempt.number)
        return self._cache.child(key_of(job), "Job", name)

    async def _with_refusal(self, job: RLHFJob, attempt: Attempt, now: datetime) -> Attempt:
        """An attempt whose pods, or their claims, are not all there after a while, with why."""
        own = self._workload(job, attempt)
        if own is None:
            return attempt
        if misses_pods(attempt, now):
            return attempt._replace(refused=await self._refused.why(own))
        if _has_claims(job, attempt.stage) and is_unseen(attempt, now):
            pods = self._pods(job, attempt)
            return attempt._replace(unclaimed=await self._refused.why_unclaimed(own, pods))
        self._refused.forget(own)
        return attempt

    def _pods(self, job: RLHFJob, attempt: Attempt) -> list[Object]:
        of = (attempt.stage, attempt.number)
        every = self._cache.children(key_of(job), "Pod")
        return [pod for pod in every if attempt_of(pod) == of]

    def next_look(self, key: JobKey, now: datetime) -> datetime | None:
        """When something about the job's pods is to be seen that no event tells."""
        pods = next_look(self._cache.children(key, "Pod"), now)
        others = self._mender.next_look(self._cache.others(key, ("Job", "Pod")), now)
        are_missing = self._refused.is_asked_for(self._cache.children(key, "Job"))
        refused = now + LOOK_AGAIN if are_missing else None
        return min(filter(None, (pods, others, refused)), default=None)

    def _is_whole(self, job: RLHFJob, attempt: Attempt, now: datetime) -> bool:
        """Whether nothing is to be made or mended; for one that is ending nothing ever is."""
        if attempt.is_terminating:
            return True
        own = self.children.own(job, attempt.stage, attempt.number)
        owned = [item for item in own if controller_uid(item)]
        if any(self._mender.is_due(item, now) for item in owned):
            return False
        there = {item["kind"] for item in owned}
        needed = {"Job", "ConfigMap"} | ({"Service"} if attempt.stage != PREPARE else set())
        return needed | self._gang_kind(job, owned) <= there

    def _gang_kind(self, job: RLHFJob, owned: Sequence[Object]) -> set[str]:
        """The kind of the gang object that an attempt needs; none where its scheduler is not that
        of today, whose objects its pods would not look at."""
        marks = (item["metadata"].get("annotations") or {} for item in owned)
        was = next((mark[ANNOTATION_GANG] for mark in marks if ANNOTATION_GANG in mark), "")
        if was != gang_choice(job.spec.scheduling, self.platform).name:
            return set()
        return {kind.rpartition("/")[2] for kind in made_kinds(was, self.platform)[:1]}

    async def confirm(self, key: JobKey) -> None:
        """By asking the API server. Raises Restored, too."""
        known = self._cache.job(key)
        await self._ask_for(key)
        now = self._cache.job(key)
        if known is None or now is None or _read(now) != _read(known):
            raise OutOfDate("the job is not what it was known for")

    async def apply(self, job: RLHFJob, objects: Sequence[Object]) -> None:
        """The Job last: where it is, all that its pods need is there, too."""
        await self.children.apply(job, objects)

    async def delete(self, job: RLHFJob, stage: str, attempt: int) -> None:
        """The Job goes only after its pods have; so nothing holds a GPU that nobody sees."""
        await self.children.delete(job, stage, attempt)

    async def write_status(self, manifest: dict[str, Any], status: JobStatus) -> None:
        """One PUT, refused by the API server where the job is not as it was loaded. Where others
        have changed nothing that a pass goes by, what it decided is put onto what they wrote."""
        await self._put(manifest, status.to_dict())
        self._on_status(status_of(manifest), status)

    async def write_conditions(
        self, manifest: dict[str, Any], conditions: Sequence[Condition]
    ) -> None:
        """The same, with all else as it was loaded."""
        known = manifest.get("status")
        kept = known if isinstance(known, dict) else {}
        own = {"conditions": [condition.to_dict() for condition in conditions]}
        await self._put(manifest, kept | own)

    async def _put(self, manifest: dict[str, Any], status: Object, tries: int = TRIES) -> None:
        meta = manifest["metadata"]
        try:
            await self._replace(manifest, status)
        except ApiError as error:
            if error.code not in (404, 409):
                raise await self._refusal(manifest, error) from error
            now = self._cache.job(JobKey(meta["namespace"], meta["name"]))
            if now is None or tries == 1 or not _is_newer_alone(now, manifest):
                raise OutOfDate(str(error)) from error
            await self._put(now, status, tries - 1)

    async def _replace(self, manifest: dict[str, Any], status: Object) -> None:
        meta = manifest["metadata"]
        kept = ("name", "namespace", "uid", "resourceVersion")
        body = manifest | {
            "metadata": {name: meta[name] for name in kept},
            "status": status,
        }
        try:
            self._cache.put(await self._api.replace(RLHFJOBS, body, "status"))
            self._refusals.forget(Asked.by_manifest(manifest), manifest, WRITING)
        except ApiError as error:
            if error.code in (404, 409) or error.is_passing:  # of these it may have been written
                await self.reload(JobKey(meta["namespace"], meta["name"]))
            raise

    async def _refusal(self, manifest: dict[str, Any], error: ApiError) -> Exception:
        """What lasts is told by an event: no condition can be written of it."""
        meta, asked = manifest["metadata"], Asked.by_manifest(manifest)
        meant = self._refusals.refusal(asked, manifest, error, WRITING)
        if not isinstance(meant, Refused):
            return meant
        if self._refusals.is_news(asked, manifest, WRITING):
            key = JobKey(meta["namespace"], meta["name"])
            await self.emit(key, [status_refused(str(meant))])
        return StatusRefused(str(meant))

    async def reload(self, key: JobKey) -> None:
        """Takes in the job as it is on the API server, if that answers. Raises Restored."""
        with contextlib.suppress(ApiError):
            await self._ask_for(key)

    async def _ask_for(self, key: JobKey) -> None:
        """Where it is gone, that is the one that was known before the question: meanwhile another
        of its name may have come."""
        known = self._cache.job(key)
        version = self._cache.version(known) if known else 0
        try:
            found = await self._api.get(RLHFJOBS, key.namespace, key.name)
        except ApiError as error:
            if not error.says_gone:
                raise
            if known is not None:
                self._cache.remove(known)
            return
        is_the_same = known is not None and known["metadata"]["uid"] == found["metadata"]["uid"]
        if is_the_same and version_of(found) < version:
            raise gone_back(found, version)
        self._cache.put(found, is_asked_for=True)

    async def emit(self, key: JobKey, happened: Sequence[Event]) -> None:
        """Best effort: what happened stands in the status anyway."""
        manifest = self._cache.job(key)
        if manifest is None:
            return
        bodies = [
            event_object(manifest, event, place, self._instance, self.now())
            for place, event in enumerate(happened)
        ]
        results = await asyncio.gather(
            *(self._api.create(EVENTS, body) for body in bodies), return_exceptions=True
        )
        for result in results:
            if isinstance(result, ApiError) and result.reason != "AlreadyExists":
                log.warning("Event on %s/%s: %s", key.namespace, key.name, result)
            elif isinstance(result, BaseException) and not isinstance(result, ApiError):
                raise result


def _has_claims(job: RLHFJob, stage: str) -> bool:
    """Whether a stage's devices are those of a ResourceClaimTemplate."""
    is_there = stage in job.spec.stages.present()
    return is_there and job.spec.resources_of(stage).device_claim_template is not None


def _is_newer_alone(now: Object, before: Object) -> bool:
    """Whether somebody has changed an RLHFJob, and nothing of it that a pass goes by: labels, and
    annotations that are not ours. Tools may do so many times a second."""
    versions = [of["metadata"]["resourceVersion"] for of in (now, before)]
    return versions[0] != versions[1] and _read(now) == _read(before)


def _read(manifest: Object) -> Object:
    meta = manifest["metadata"]
    ours = {k: v for k, v in (meta.get("annotations") or {}).items() if k.startswith(f"{GROUP}/")}
    names = ("uid", "generation", "deletionTimestamp", "finalizers")
    read = {name: meta.get(name) for name in names}
    return read | {"spec": manifest.get("spec"), "status": manifest.get("status"), "ours": ours}
