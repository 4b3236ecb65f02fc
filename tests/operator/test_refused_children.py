"""What a refusal of the API server, in its own words, means for the job."""

from __future__ import annotations

import asyncio
import contextlib
import re
from datetime import timedelta
from typing import Any, cast

import pytest
from builders import NOON, a_job
from rlhf_api.job import RLHFJob
from rlhf_api.status import JobStatus
from rlhf_operator.api import Api, ApiError
from rlhf_operator.cache import Cache
from rlhf_operator.cluster import KubernetesCluster
from rlhf_operator.controller import REFUSED_AGAIN, OutOfDate, Refused, StatusRefused
from rlhf_operator.names import ANNOTATION_JOB_UID, ANNOTATION_SETTINGS, JobKey
from rlhf_operator.refused_changes import refusal
from rlhf_operator.render import Platform
from rlhf_operator.watches import Restored

KEY = JobKey("default", "tiny")
JOB = {"kind": "Job", "metadata": {"name": "tiny-sft-1"}}
FORBIDDEN = 'jobs.batch "tiny-sft-1" is forbidden: '


@pytest.mark.parametrize(
    ("code", "reason", "message", "state"),
    [
        (
            500,
            "InternalError",
            'Internal error occurred: failed calling webhook "mjob.kb.io": failed to call webhook: '
            'Post "https://kueue.kueue-system.svc:443/mutate": dial tcp: connection refused',
            ("Reconciling", "WebhookFailed"),
        ),
        (403, "Forbidden", f"{FORBIDDEN}exceeded quota: few", ("Reconciling", "QuotaExceeded")),
        (
            403,
            "Forbidden",
            f"{FORBIDDEN}status unknown for quota: few, resources: count/jobs.batch",
            ("Reconciling", "QuotaExceeded"),
        ),
        (
            403,
            "Forbidden",
            f"{FORBIDDEN}unable to create in namespace a because it is being terminated",
            ("Reconciling", "NamespaceTerminating"),
        ),
        (403, "Forbidden", f"{FORBIDDEN}User cannot create jobs", ("Stalled", "Forbidden")),
        (400, "BadRequest", 'admission webhook "x" denied it', ("Stalled", "ChildRefused")),
        (500, "", 'admission webhook "x" denied the request: no', ("Stalled", "ChildRefused")),
        (429, "", 'admission webhook "x" denied the request: no', ("Stalled", "ChildRefused")),
    ],
)
def test_a_refusal_that_lasts_becomes_a_condition(
    code: int, reason: str, message: str, state: tuple[str, str]
) -> None:
    found = refusal(ApiError(code, reason, message), JOB)
    assert isinstance(found, Refused)
    assert found.state[:2] == state
    assert message[:40] in found.state.message


def test_what_others_use_of_a_quota_is_no_news() -> None:
    said = [
        refusal(ApiError(403, "Forbidden", f"{FORBIDDEN}exceeded quota: few, {asked}"), JOB)
        for asked in (
            f"requested: cpu=4,pods=1, used: cpu={used},pods=2, limited: cpu=8,pods=2"
            for used in (5, 6)
        )
    ]
    assert str(said[0]) == str(said[1])
    assert str(said[0]).endswith("few, requested: cpu=4,pods=1, limited: cpu=8,pods=2")


def test_what_was_refused_is_asked_for_once_a_minute_whatever_wakes_its_job() -> None:
    """What is said of it is written, which wakes the job: in other words each time, for ever."""

    class Full:
        asked = 0

        async def create(self, *_: Any) -> None:
            self.asked += 1
            said = f"read tcp 10.0.0.1:{4000 + self.asked}->10.0.0.2:443: connection reset by peer"
            raise ApiError(500, "InternalError", f'failed calling webhook "x": {said}')

    api, now = Full(), NOON
    cluster = KubernetesCluster(cast(Api, api), Cache(), Platform(), {}, clock=lambda: now)
    job = a_job().build()
    said = []
    for seconds in (0, 1, 30, REFUSED_AGAIN.total_seconds()):
        now = NOON + timedelta(seconds=seconds)
        with pytest.raises(Refused) as refused:
            asyncio.run(cluster.apply(job, [wanted(job)]))
        said.append(str(refused.value))
    assert said[0] == said[1] == said[2] != said[3]
    assert api.asked == 2
    edited = job.metadata.model_copy(update={"generation": 2})
    with pytest.raises(Refused):
        asyncio.run(cluster.apply(job.model_copy(update={"metadata": edited}), [wanted(job)]))
    assert api.asked == 3


def test_an_api_server_that_has_just_started_fails_no_job() -> None:
    """It forbids everything for a fraction of a second, as it has read no roles yet."""

    class Starts:
        async def create(self, *_: Any) -> None:
            raise ApiError(403, "Forbidden", f'{FORBIDDEN}RBAC: role "operator" not found')

    now = NOON
    cluster = KubernetesCluster(cast(Api, Starts()), Cache(), Platform(), {}, clock=lambda: now)
    job = a_job().build()
    for seconds in (0, 1, 4):
        now = NOON + timedelta(seconds=seconds)
        with pytest.raises(ApiError):  # is tried again within seconds, and told to nobody
            asyncio.run(cluster.apply(job, [wanted(job)]))
    now = NOON + timedelta(seconds=8)
    with pytest.raises(Refused) as refused:
        asyncio.run(cluster.apply(job, [wanted(job)]))
    assert refused.value.state[:2] == ("Stalled", "Forbidden")


DENIED = (
    "jobs.batch \"tiny-sft-1\" is forbidden: ValidatingAdmissionPolicy 'cost' with binding 'cost' "
    "denied request: put a cost label on it"
)
"""As kube-apiserver 1.36 words it; MutatingAdmissionPolicies begin with `policy 'cost'`."""


def test_a_policy_s_refusal_is_told_at_once() -> None:
    """Whoever has just started knows no rights yet, but no policies either."""

    class Strict:
        async def create(self, *_: Any) -> None:
            raise ApiError(403, "Forbidden", DENIED)

    cluster = KubernetesCluster(cast(Api, Strict()), Cache(), Platform(), {}, clock=lambda: NOON)
    job = a_job().build()
    with pytest.raises(Refused, match="put a cost label on it") as refused:
        asyncio.run(cluster.apply(job, [wanted(job)]))
    assert refused.value.state[:2] == ("Stalled", "Forbidden")


class Breaks:
    """An API server that breaks over a Job, and over nothing else, until it is mended.

    kube-apiserver 1.36 does so over a MutatingAdmissionPolicy whose patch has a list of objects.
    """

    is_broken = True
    asked = 0

    async def create(self, _: Any, body: dict[str, Any]) -> dict[str, Any]:
        self.asked += 1
        if self.is_broken:
            raise ApiError(0, "Unreachable", "Server disconnected")
        return body | {"metadata": body["metadata"] | {"uid": "u", "resourceVersion": "7"}}


def test_what_should_pass_and_does_not_is_told_after_a_minute() -> None:
    now, api, cache = NOON, Breaks(), Cache()
    cluster = KubernetesCluster(cast(Api, api), cache, Platform(), {}, clock=lambda: now)
    job = a_job().build()

    def apply(seconds: float) -> None:
        nonlocal now
        now = NOON + timedelta(seconds=seconds)
        asyncio.run(cluster.apply(job, [wanted(job)]))

    for seconds in (0, 1, 30, 59):
        with pytest.raises(ApiError):
            apply(seconds)
    for seconds in (64, 124, 184, 185):  # once a minute
        with pytest.raises(Refused) as refused:
            apply(seconds)
        assert refused.value.state[:2] == ("Reconciling", "RequestFails")
        assert "Job tiny-sft-1: no answer Unreachable: Server disconnected" in str(refused.value)
    assert api.asked == 7
    api.is_broken = False
    apply(244)
    cache.remove(cache.children(KEY, "Job")[0])
    api.is_broken = True
    with pytest.raises(ApiError):  # it was made meanwhile: what breaks now may pass by itself
        apply(245)


def test_a_limit_on_claims_is_told_at_once() -> None:
    """An API server that has just started may know no rights yet; this is a limit that it knows."""
    said = (
        'persistentvolumeclaims "tiny-checkpoints" is forbidden: minimum storage usage per '
        "PersistentVolumeClaim is 1Ti, but request is 500Gi"
    )

    class Limits:
        async def create(self, *_: Any) -> None:
            raise ApiError(403, "Forbidden", said)

    cluster = KubernetesCluster(cast(Api, Limits()), Cache(), Platform(), {}, clock=lambda: NOON)
    job = a_job().build()
    with pytest.raises(Refused) as refused:
        asyncio.run(cluster.apply(job, [wanted(job)]))
    assert refused.value.state[:2] == ("Stalled", "Forbidden")
    assert refused.value.state.message.endswith(said)


class KeepsNoStatus:
    """An API server that refuses to write down a status, and takes events."""

    def __init__(self, error: ApiError) -> None:
        self.error: ApiError | None = error
        self.told: list[dict[str, Any]] = []

    async def replace(self, _: Any, body: dict[str, Any], subresource: str) -> dict[str, Any]:
        assert subresource == "status"
        if self.error:
            raise self.error
        return body

    async def create(self, _: Any, body: dict[str, Any]) -> dict[str, Any]:
        self.told.append(body)
        return body

    async def get(self, *_: Any) -> dict[str, Any]:
        return rlhfjob(version=7)


WRITTEN = (
    "rlhfjobs.rlhf.dev \"tiny\" is forbidden: ValidatingAdmissionPolicy 'frozen' with binding "
    "'frozen' denied request: no statuses on Fridays"
)
NO_RIGHT = (
    'rlhfjobs.rlhf.dev "tiny" is forbidden: User "system:serviceaccount:rlhf:operator" cannot '
    'update resource "rlhfjobs/status" in API group "rlhf.dev" in the namespace "default"'
)


@pytest.mark.parametrize(
    ("error", "after"),
    [
        (ApiError(422, "Invalid", WRITTEN), 0),
        (ApiError(403, "Forbidden", NO_RIGHT), 6),  # once it knows everybody's rights
        (ApiError(500, "InternalError", "etcdserver: request is too large"), 61),
    ],
)
def test_a_status_that_is_refused_is_told_by_one_event(error: ApiError, after: int) -> None:
    """No condition can be written then; the operator's log is read by nobody who has the job."""
    cache, api, now = Cache(), KeepsNoStatus(error), NOON
    cluster = KubernetesCluster(cast(Api, api), cache, Platform(), {}, clock=lambda: now)
    cache.put(job := rlhfjob(version=7))
    if after:  # it may yet pass
        with pytest.raises(ApiError):
            asyncio.run(cluster.write_status(job, JobStatus()))
    for minutes in (0, 1, 2):
        now = NOON + timedelta(seconds=after, minutes=minutes)
        with pytest.raises(StatusRefused, match=re.escape(str(error))):
            asyncio.run(cluster.write_status(job, JobStatus()))
    (event,) = api.told
    assert (event["reason"], event["type"]) == ("StatusRefused", "Warning")
    assert event["note"].endswith(f"Writing the status of RLHFJob tiny: {error}")
    assert event["regarding"]["uid"] == job["metadata"]["uid"]


def test_a_refused_status_is_told_anew_while_it_lasts_and_once_it_begins_again() -> None:
    """Events live for an hour, and a job that stands still over night has nothing else."""
    cache, api, now = Cache(), KeepsNoStatus(ApiError(422, "Invalid", WRITTEN)), NOON
    cluster = KubernetesCluster(cast(Api, api), cache, Platform(), {}, clock=lambda: now)
    cache.put(job := rlhfjob(version=7))

    def write(minutes: int) -> None:
        nonlocal now
        now = NOON + timedelta(minutes=minutes)
        with contextlib.suppress(StatusRefused):
            asyncio.run(cluster.write_status(job, JobStatus()))

    for minutes in range(65):
        write(minutes)
    assert len(api.told) == 2
    refuses, api.error = api.error, None
    write(65)
    api.error = refuses
    write(66)
    assert len(api.told) == 3


def wanted(job: RLHFJob) -> dict[str, Any]:
    """The Job of SFT's first attempt."""
    labels = {"rlhf.dev/job": "tiny", "rlhf.dev/stage": "sft", "rlhf.dev/attempt": "1"}
    owner = {"controller": True, "kind": "RLHFJob", "name": "tiny", "uid": job.metadata.uid}
    meta = {"name": "tiny-sft-1", "namespace": "default", "labels": labels}
    meta |= {"ownerReferences": [owner]}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta}


@pytest.mark.parametrize("code", [0, 429, 500, 503])
def test_what_passes_is_tried_again_at_once_and_told_to_nobody(code: int) -> None:
    error = ApiError(code, "ServerTimeout", "not now")
    assert refusal(error, JOB) is error


class Refuses:
    """An API server that lets nobody delete anything."""

    def __init__(self, error: ApiError) -> None:
        self.error = error

    async def delete(self, *_: Any) -> None:
        raise self.error


def delete(error: ApiError, kind: str = "Job") -> Cache:
    """The first attempt of SFT, of which a Job is there; what is known of it then."""
    job, cache = a_job().build(), Cache()
    labels = {"rlhf.dev/job": "tiny", "rlhf.dev/stage": "sft", "rlhf.dev/attempt": "1"}
    marks = {ANNOTATION_JOB_UID: job.metadata.uid, ANNOTATION_SETTINGS: "sha256:s"}
    owner = {"controller": True, "kind": "RLHFJob", "name": "tiny", "uid": job.metadata.uid}
    meta = {"name": "tiny-sft-1", "namespace": "default", "uid": "u", "resourceVersion": "7"}
    meta |= {"labels": labels, "annotations": marks, "ownerReferences": [owner]}
    cache.put({"apiVersion": {"Job": "batch/v1"}.get(kind, "v1"), "kind": kind, "metadata": meta})
    now = NOON
    cluster = KubernetesCluster(cast(Api, Refuses(error)), cache, Platform(), {}, clock=lambda: now)
    with contextlib.suppress(ApiError):
        asyncio.run(cluster.delete(job, "sft", 1))
    now += timedelta(seconds=6)  # an API server that has just started would know everybody by then
    asyncio.run(cluster.delete(job, "sft", 1))
    return cache


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ApiError(403, "Forbidden", "a policy denied the request"), ("Stalled", "Forbidden")),
        (
            ApiError(500, "InternalError", 'failed calling webhook "x": no endpoints'),
            ("Reconciling", "WebhookFailed"),
        ),
    ],
)
def test_a_deletion_that_is_refused_becomes_a_condition(
    error: ApiError, state: tuple[str, str]
) -> None:
    with pytest.raises(Refused) as refused:
        delete(error)
    assert refused.value.state[:2] == state
    assert str(refused.value).startswith("Deleting Job tiny-sft-1: ")
    assert refused.value.is_in_the_way
    with pytest.raises(Refused) as refused:
        delete(error, "ConfigMap")
    assert not refused.value.is_in_the_way  # no process uses it any more


NOT_FOUND = ApiError(404, "NotFound", 'jobs.batch "tiny-sft-1" not found')
NO_PATH = ApiError(404, "Error", "404 page not found")


def test_a_child_is_gone_where_the_api_server_says_so() -> None:
    assert delete(NOT_FOUND).children(KEY, "Job") == []


def test_a_404_of_whatever_is_before_the_api_server_makes_nothing_gone() -> None:
    """It says nothing of the Job, whose pods train on, and nobody would look for it again."""
    with pytest.raises(OutOfDate):
        delete(NO_PATH)


@pytest.mark.parametrize(("error", "is_known"), [(NOT_FOUND, False), (NO_PATH, True)])
def test_so_is_a_job(error: ApiError, is_known: bool) -> None:
    class Away:
        async def get(self, *_: Any) -> None:
            raise error

    cache = Cache()
    cache.put(rlhfjob(version=7))
    asyncio.run(KubernetesCluster(cast(Api, Away()), cache, Platform(), {}).reload(KEY))
    assert (cache.job(KEY) is not None) is is_known


def test_a_job_that_is_older_than_it_was_tells_of_a_backup() -> None:
    """etcd was restored: nothing that is written of the job would ever be taken."""

    class Older:
        async def get(self, *_: Any) -> dict[str, Any]:
            return rlhfjob(version=6)

    cache = Cache()
    cache.put(rlhfjob(version=7))
    with pytest.raises(Restored, match="RLHFJob tiny was at version 7, and is at 6"):
        asyncio.run(KubernetesCluster(cast(Api, Older()), cache, Platform(), {}).reload(KEY))


def rlhfjob(version: int) -> dict[str, Any]:
    meta = {"name": "tiny", "namespace": "default", "uid": "u", "resourceVersion": str(version)}
    return {"apiVersion": "rlhf.dev/v1alpha1", "kind": "RLHFJob", "metadata": meta}


def test_a_deletion_that_may_be_taken_later_is_tried_again() -> None:
    with pytest.raises(ApiError):
        delete(ApiError(503, "ServiceUnavailable", "not now"))
