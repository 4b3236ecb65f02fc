"""A job's children on the API server: made as they are rendered, and deleted.

Every answer to a write enters the cache before the next pass looks, so a watch that lags behind
never makes a pass do again what was done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from rlhf_api.job import RLHFJob

from rlhf_operator.api import Api, ApiError, Object, Resource
from rlhf_operator.cache import Cache
from rlhf_operator.controller import OutOfDate, Refused
from rlhf_operator.discovery import Served
from rlhf_operator.mending import Mender
from rlhf_operator.names import (
    CONTROLLER_UID,
    LABEL_ATTEMPT,
    LABEL_JOB,
    LABEL_STAGE,
    JobKey,
    child_name,
    service_name,
)
from rlhf_operator.observe import attempt_of_pod
from rlhf_operator.observe_pod import pod
from rlhf_operator.ownership import (
    claim_gone,
    controller_uid,
    going,
    is_disowned,
    is_left_over,
    is_of_another,
    is_ours,
    is_unlabelled,
    may_serve,
    owner_text,
    relabelled,
    results_on,
)
from rlhf_operator.refusals import Asked, Refusals
from rlhf_operator.refused_changes import refusal
from rlhf_operator.server_clock import Clock, own_clock
from rlhf_operator.watches import CHILDREN, JOBS, PODS

GIVEN_BACK: Final = ("name", "namespace", "ownerReferences", "labels")
"""Metadata of a child that somebody has taken its owner or a label from."""


class Children:
    """The children of every job, through one API client and one cache."""

    def __init__(
        self,
        api: Api,
        cache: Cache,
        mender: Mender,
        served: Served,
        clock: Clock = own_clock,
    ) -> None:
        self.served = served
        self.unserved = asyncio.Event()
        """Somebody has met a kind that was served, and is not any more."""
        self._api = api
        self._cache = cache
        self._mender = mender
        self._now = clock
        self._refusals = Refusals(clock)

    def own(self, job: RLHFJob, stage: str, attempt: int) -> list[Object]:
        """What is there of the attempt and belongs to this very RLHFJob."""
        name = child_name(job.metadata.name, stage, attempt)
        named = self._cache.named(key_of(job), (name, service_name(name)))
        return [item for item in named if is_ours(item, job.metadata.uid)]

    async def apply(self, job: RLHFJob, objects: Sequence[Object]) -> None:
        """The Job last: where it is, all that its pods need is there, too."""
        *before, last = objects
        await self._no_other_pods(job, last)
        await asyncio.gather(*(self._create(job, item) for item in before))
        await self._create(job, last)

    async def _no_other_pods(self, job: RLHFJob, workload: Object) -> None:
        """No pod of the stage may live that the Job to be made does not own.

        Where an attempt follows another, the API server itself is asked: the watch may not have
        told yet of a pod whose Job is known to be gone.
        """
        key, labels, now = key_of(job), workload["metadata"]["labels"], self._now()
        stage, number = labels[LABEL_STAGE], int(labels[LABEL_ATTEMPT])
        if number > 1:
            await self.ask_for_pods(key, f"{LABEL_STAGE}={stage}")
        is_there = self._cache.child(key, "Job", workload["metadata"]["name"]) is not None
        of = (job.metadata.name, job.metadata.uid)
        for item in self._cache.children(key, "Pod"):
            of_stage, of_number = attempt_of_pod(item, *of, now) or ("", 0)
            is_its_own = is_there and of_number == number
            is_live = pod(item, now).is_live
            if of_stage == stage and is_live and not is_its_own:
                raise OutOfDate(f"pod {item['metadata']['name']} still lives")

    async def ask_for_pods(self, key: JobKey, *of: str) -> None:
        """Takes in the job's pods as they are on the API server; `of`: further labels of theirs."""
        selector = ",".join((f"{LABEL_JOB}={key.name}", *of))
        for item in (await self._api.list(PODS, key.namespace, selector=selector))[0]:
            self._cache.put(item)

    async def pods_of(self, workloads: Sequence[Object]) -> list[Object]:
        """Takes in the pods of these Jobs of one namespace as they are on the API server. Gives
        those that have lost a label of ours, with it: no watch tells of them."""
        of = {item["metadata"]["uid"]: item for item in workloads}
        namespace = workloads[0]["metadata"]["namespace"]
        selector = f"{CONTROLLER_UID} in ({','.join(of)})"
        lost: list[Object] = []
        for item in (await self._api.list(PODS, namespace, selector=selector))[0]:
            workload = of.get(controller_uid(item) or "")
            if workload and (found := relabelled(item, workload)):
                lost.append(found)
            else:
                self._cache.put(item)
        return lost

    async def _create(self, job: RLHFJob, item: Object) -> None:
        known = self._cache.child(key_of(job), item["kind"], item["metadata"]["name"])
        is_there = known is not None and "deletionTimestamp" not in known["metadata"]
        if known and is_there and may_serve(known, item, job.metadata.uid):
            if self._mender.is_due(known, self._now()):
                self._cache.put(await self._mender.mend(self._resource(item), known))
            return
        resource, asked = self._resource(item), Asked.by(job)
        self._refusals.recall(asked, item)
        if results_on(job, item):  # it was made long since: another one would have nothing on it
            await self._meet(job, resource, item)
            return
        try:
            self._cache.put(await self._api.create(resource, item))
            self._refusals.forget(asked, item)
        except ApiError as error:
            if error.code == 409 and error.reason == "AlreadyExists":
                await self._meet(job, resource, item)
            elif error.code == 404:  # the kind has gone; where it was the namespace, so has the job
                self.unserved.set()
                raise OutOfDate(f"{resource.kind}: {error}") from error
            else:
                raise self._refusals.refusal(asked, item, error) from error

    async def _meet(self, job: RLHFJob, resource: Resource, wanted: Object) -> None:
        """An object of that name is there: ours from an earlier pass, or somebody else's."""
        meta = wanted["metadata"]
        try:
            found = await self._api.get(resource, meta["namespace"], meta["name"])
        except ApiError as error:
            if error.says_gone and (lost := results_on(job, wanted)):
                raise Refused("Stalled", "ClaimGone", claim_gone(wanted, lost)) from error
            if error.code == 404:
                raise OutOfDate(f"{resource.kind} {meta['name']} has just gone") from error
            raise
        self._cache.put(found)
        name = f"{resource.kind} {meta['name']}"
        if "deletionTimestamp" in found["metadata"] or is_left_over(found, wanted):
            raise Refused("Reconciling", "Terminating", going(found, wanted))
        if is_disowned(found, wanted) or is_unlabelled(found, wanted):
            meta = {k: wanted["metadata"][k] for k in GIVEN_BACK}
            meta["uid"] = found["metadata"]["uid"]
            body = {k: wanted[k] for k in ("apiVersion", "kind")} | {"metadata": meta}
            try:
                self._cache.put(await self._api.apply(resource, body))
            except ApiError as error:
                if error.code in (404, 409):  # it has gone, or another has come in its place
                    raise OutOfDate(str(error)) from error
                raise refusal(error, wanted, "Taking back") from error
            return
        if not may_serve(found, wanted, job.metadata.uid):
            said = (
                f"{name} is there already and belongs to {owner_text(found)}. It was not touched: "
                "delete or rename it, or give this RLHFJob another name."
            )
            raise Refused("Stalled", "NameTaken", said)

    def _is_served(self, item: Object) -> bool:
        """A gang object goes with its kind; what is known of it is forgotten."""
        try:
            self._resource(item)
        except Refused:
            self._cache.remove(item)
            return False
        return True

    def _resource(self, item: Object) -> Resource:
        own = {(r.api_version, r.kind): r for r in CHILDREN}
        where = (item["apiVersion"], item["kind"])
        found = own.get(where) or self.served.get(where)
        if found is None:
            said = f"The API server does not serve {where[1]} of {where[0]}."
            raise Refused("Stalled", "GangSchedulerMissing", said)
        return found

    async def delete(self, job: RLHFJob, stage: str, attempt: int) -> None:
        """The Job goes only after its pods have; so nothing holds a GPU that nobody sees."""
        key = key_of(job)
        own = self.own(job, stage, attempt)
        workload = next((item for item in own if item["kind"] == "Job"), None)
        if workload and job.metadata.deletion_timestamp and not controller_uid(workload):
            return  # `kubectl delete --cascade=orphan`: who asks for that wants it to stay
        if workload:
            await self._delete(job, JOBS, workload, "Foreground")
        else:
            of, now = (job.metadata.name, job.metadata.uid), self._now()
            for item in self._cache.children(key, "Pod"):
                is_its_own = attempt_of_pod(item, *of, now) == (stage, attempt)
                if is_its_own and not is_of_another(item, job.metadata.uid):
                    await self._delete(job, PODS, item, "Background")
        try:
            for item in own:
                if item["kind"] != "Job" and self._is_served(item):
                    await self._delete(job, self._resource(item), item, "Background")
        except Refused as refused:  # no process uses what is left
            refused.is_in_the_way = False
            raise

    async def _delete(
        self, job: RLHFJob, resource: Resource, item: Object, propagation: str
    ) -> None:
        meta, asked = item["metadata"], Asked.by(job)
        if "deletionTimestamp" in meta:
            return
        self._refusals.recall(asked, item, "Deleting")
        try:
            answer = await self._api.delete(
                resource, meta["namespace"], meta["name"], meta["uid"], propagation
            )
        except ApiError as error:
            if error.says_gone or (error.code == 404 and resource not in CHILDREN):
                self._cache.remove(item)
                return
            if error.code in (404, 409):  # nobody was asked; or another is there, or it is written
                raise OutOfDate(str(error)) from error
            raise self._refusals.refusal(asked, item, error, "Deleting") from error
        self._refusals.forget(asked, item, "Deleting")
        if "deletionTimestamp" in answer.get("metadata", {}):
            self._cache.put(answer)
        else:
            self._cache.remove(item)


def key_of(job: RLHFJob) -> JobKey:
    """Which RLHFJob it is."""
    return JobKey(job.metadata.namespace, job.metadata.name)
