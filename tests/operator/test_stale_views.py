"""What a pass looks at may be out of date: the watch of Jobs may be ahead of that of pods, or the
job was made again."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterable
from typing import Any, cast

import pytest
from builders import NOON, a_job
from rlhf_api.status import JobStatus, StageStatus
from rlhf_operator.api import Api, ApiError
from rlhf_operator.cache import Cache
from rlhf_operator.cluster import KubernetesCluster
from rlhf_operator.controller import OutOfDate
from rlhf_operator.names import ANNOTATION_HASH, ANNOTATION_JOB_UID, ANNOTATION_SETTINGS, JobKey
from rlhf_operator.observed import Pod
from rlhf_operator.render import Platform
from rlhf_operator.watches import Restored

Object = dict[str, Any]
JOB = a_job().build()


def child(kind: str, name: str, owner: Object, **content: Any) -> Object:
    labels = {"rlhf.dev/job": "tiny", "rlhf.dev/stage": "sft", "rlhf.dev/attempt": "1"}
    meta = {"name": name, "namespace": "default", "uid": name, "resourceVersion": "7"}
    marks = {ANNOTATION_HASH: "sha256:h", ANNOTATION_SETTINGS: "sha256:s"}
    owners = [{"controller": True, **owner}]
    extra = {"labels": labels, "annotations": marks, "ownerReferences": owners}
    return {"apiVersion": "v1", "kind": kind, "metadata": meta | extra, **content}


def workload(condition: str) -> Object:
    owner = {"kind": "RLHFJob", "name": "tiny", "uid": JOB.metadata.uid}
    status = {"conditions": [{"type": condition, "status": "True"}]}
    return child("Job", "tiny-sft-1", owner, spec={"completions": 1}, status=status)


def pod(phase: str) -> Object:
    owner = {"kind": "Job", "name": "tiny-sft-1", "uid": "tiny-sft-1"}
    return child("Pod", "tiny-sft-1-0-abc", owner, status={"phase": phase})


class Server:
    """Has a pod that no watch has told of."""

    def __init__(self, pod: Object) -> None:
        self.pod, self.asked = pod, 0

    async def list(self, *_: Any, **__: Any) -> tuple[list[Object], int]:
        self.asked += 1
        return [self.pod], 9


def pods_seen(server: Server, cache: Cache, status: StageStatus) -> list[Pod]:
    cluster = KubernetesCluster(cast(Api, server), cache, Platform(), {})
    job = JOB.model_copy(update={"status": JobStatus(stages={"sft": status})})
    observed = asyncio.run(cluster.observe(job, NOON))
    return [pod for attempt in observed.attempts for pod in attempt.pods]


def seen(server: Server, cache: Cache, status: StageStatus) -> tuple[str, ...]:
    return tuple(pod.phase for pod in pods_seen(server, cache, status))


@pytest.mark.parametrize(("condition", "phase"), [("Complete", "Succeeded"), ("Failed", "Failed")])
def test_the_pods_of_a_job_that_ended_unseen_are_asked_for_once(condition: str, phase: str) -> None:
    server, cache = Server(pod(phase)), Cache()
    cache.put(workload(condition))
    under_way = StageStatus(attempt=1)
    assert seen(server, cache, under_way) == (phase,)
    assert seen(server, cache, under_way) == (phase,)
    assert server.asked == 1


def test_the_pods_of_a_job_that_says_only_that_they_have_succeeded_are_asked_for() -> None:
    ended = pod("Succeeded")
    terminated = {"exitCode": 0, "finishedAt": "2026-01-01T12:00:00Z"}
    container = {"name": "trainer", "state": {"terminated": terminated}}
    ended["status"]["containerStatuses"] = [container]
    cache, job = Cache(), workload("SuccessCriteriaMet")
    job["status"]["completedIndexes"] = "0"
    cache.put(job)
    found = pods_seen(Server(ended), cache, StageStatus(attempt=1))
    assert [pod.exit_code for pod in found] == [0]


def stray(phase: str) -> Object:
    """A pod of the Job that somebody has taken a label of ours from."""
    item = pod(phase)
    del item["metadata"]["labels"]["rlhf.dev/job"]
    return item


def test_a_pod_that_has_lost_its_label_is_asked_for_and_not_missed() -> None:
    job, cache = workload("Suspended"), Cache()
    job["status"]["active"] = 1
    cache.put(job)
    cluster = KubernetesCluster(cast(Api, Server(stray("Running"))), cache, Platform(), {})
    (attempt,) = asyncio.run(cluster.observe(JOB, NOON)).attempts
    assert attempt.unlabelled == ("tiny-sft-1-0-abc",)
    assert attempt.is_live
    assert cache.children(JobKey("default", "tiny"), "Pod") == []  # no watch would tell of its end


def test_an_attempt_is_not_over_while_a_pod_that_has_lost_its_label_ends() -> None:
    """Its successor would train beside it."""
    job, cache = workload("Suspended"), Cache()
    job["status"]["terminating"] = 1
    job["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"
    cache.put(job)
    assert seen(Server(stray("Running")), cache, StageStatus(attempt=2)) == ("Running",)


def test_how_a_pod_that_has_lost_its_label_ended_counts() -> None:
    cache = Cache()
    cache.put(workload("Complete"))
    assert seen(Server(stray("Succeeded")), cache, StageStatus(attempt=1)) == ("Succeeded",)


class Takes(Server):
    """Takes all that is made."""

    async def create(self, _: Any, item: Object) -> Object:
        return {**item, "metadata": item["metadata"] | {"uid": "new", "resourceVersion": "11"}}


@pytest.mark.parametrize(
    ("owners", "marks", "may_start"),
    [
        ([{"kind": "Job", "name": "tiny-sft-1", "uid": "gone"}], {}, False),
        ([], {ANNOTATION_JOB_UID: JOB.metadata.uid}, False),  # its Job has left it to itself
        ([{"kind": "ReplicaSet", "name": "web", "uid": "web"}], {}, True),
        ([], {}, True),
    ],
)
def test_pods_of_the_stage_are_waited_for_and_strangers_with_its_labels_are_not(
    owners: list[Object], marks: Object, may_start: bool
) -> None:
    item = pod("Running")
    item["metadata"]["ownerReferences"] = [{"controller": True, **owner} for owner in owners]
    item["metadata"]["annotations"] = marks
    second = workload("Complete")
    second["metadata"]["name"] = "tiny-sft-2"
    second["metadata"]["labels"]["rlhf.dev/attempt"] = "2"
    cluster = KubernetesCluster(cast(Api, Takes(item)), Cache(), Platform(), {})
    expected = contextlib.nullcontext() if may_start else pytest.raises(OutOfDate)
    with expected:
        asyncio.run(cluster.apply(JOB, [second | {"apiVersion": "batch/v1"}]))


def test_nobody_asks_for_the_pods_of_an_attempt_that_is_not_the_newest() -> None:
    server, cache = Server(pod("Succeeded")), Cache()
    cache.put(workload("Complete"))
    seen(server, cache, StageStatus(attempt=2))
    assert server.asked == 0


class Jobs:
    """Keeps one RLHFJob, as an API server does: who replaces it names the version that he saw.
    Somebody else is faster with his own `changes`, each of them once."""

    def __init__(self, job: Object, changes: Iterable[Object] = ()) -> None:
        self.job = job
        self.changes = iter(changes)

    async def replace(self, _: Any, body: Object, __: str) -> Object:
        for change in itertools.islice(self.changes, 1):
            version = str(int(self.job["metadata"]["resourceVersion"]) + 1)
            meta = self.job["metadata"] | {"resourceVersion": version} | change.get("metadata", {})
            self.job = self.job | change | {"metadata": meta}
        if body["metadata"]["resourceVersion"] != self.job["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "the object has been modified")
        self.job = body
        return body

    async def get(self, *_: Any) -> Object:
        return self.job


def an_rlhfjob(uid: str, version: str) -> Object:
    meta = {"name": "tiny", "namespace": "default", "uid": uid, "resourceVersion": version}
    return {"apiVersion": "rlhf.dev/v1alpha1", "kind": "RLHFJob", "metadata": meta}


def test_no_status_reaches_a_job_that_was_made_again_during_the_pass() -> None:
    """It would take the results of the old one for its own."""

    async def write() -> None:
        key, cache = JobKey("default", "tiny"), Cache()
        old, new = an_rlhfjob("old", "5"), an_rlhfjob("new", "9")
        cache.put(old)
        server = Jobs(new)
        cluster = KubernetesCluster(cast(Api, server), cache, Platform(), {})
        manifest = await cluster.load(key)
        assert manifest is not None
        cache.remove(
            old
        )  # the watch tells of both while the pass asks the API server for something
        cache.put(new)
        with pytest.raises(OutOfDate):
            await cluster.write_status(manifest, JobStatus(stages={"sft": StageStatus(attempt=7)}))
        assert server.job == new

    asyncio.run(write())


def written(server: Jobs) -> None:
    """By a pass over the job as it was, which no watch has told of since."""

    async def write() -> None:
        key, cache = JobKey("default", "tiny"), Cache()
        cache.put(server.job)
        cluster = KubernetesCluster(cast(Api, server), cache, Platform(), {})
        manifest = await cluster.load(key)
        assert manifest is not None
        await cluster.write_status(manifest, JobStatus(stages={"sft": StageStatus(attempt=1)}))

    asyncio.run(write())


def test_whoever_changes_what_no_pass_goes_by_does_not_hold_a_job_up() -> None:
    """A tool that keeps its labels or annotations up to date may write many times a second."""
    seen = [{"metadata": {"annotations": {"example.com/seen": str(at)}}} for at in range(3)]
    server = Jobs(an_rlhfjob("uid", "5"), seen)
    written(server)
    assert server.job["status"]["stages"]["sft"]["attempt"] == 1


CHANGES: dict[str, Object] = {
    "spec": {"spec": {"suspend": True}, "metadata": {"generation": 2}},
    "status": {"status": {"stages": {"sft": {"attempt": 1}}}},  # of another replica
    "annotation of ours": {"metadata": {"annotations": {"rlhf.dev/approve": "sft"}}},
    "finalizer": {"metadata": {"finalizers": ["orphan"]}},
    "made again": {"metadata": {"uid": "new"}},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_status_that_was_decided_on_something_else_is_refused(change: Object) -> None:
    server = Jobs(an_rlhfjob("uid", "5"), [change])
    with pytest.raises(OutOfDate):
        written(server)
    assert server.job.get("status") == change.get("status")


def confirmed(change: Object) -> None:
    """What a pass goes by, on an API server that has the job with this change."""
    key, cache, known = JobKey("default", "tiny"), Cache(), an_rlhfjob("uid", "5")
    cache.put(known)
    newer = known["metadata"] | {"resourceVersion": "6"} | change.get("metadata", {})
    server = Jobs(known | change | {"metadata": newer})
    asyncio.run(KubernetesCluster(cast(Api, server), cache, Platform(), {}).confirm(key))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_is_made_for_a_job_that_is_not_what_it_was_known_for(change: Object) -> None:
    with pytest.raises(OutOfDate):
        confirmed(change)


def test_what_no_pass_goes_by_does_not_keep_children_from_being_made() -> None:
    confirmed({"metadata": {"annotations": {"example.com/seen": "1"}}})


def test_an_older_job_than_was_known_ends_the_process_before_anything_is_made() -> None:
    with pytest.raises(Restored):
        confirmed({"metadata": {"resourceVersion": "4"}})


def test_a_status_is_not_sent_for_ever() -> None:
    server = Jobs(an_rlhfjob("uid", "5"), itertools.repeat({"metadata": {"labels": {"a": "b"}}}))
    with pytest.raises(OutOfDate):
        written(server)


def test_a_job_that_is_made_again_while_the_old_one_is_asked_for_is_seen() -> None:
    """Taken for the one that is gone, it would not be looked at before somebody edits it."""
    key, cache = JobKey("default", "tiny"), Cache()
    old, new = an_rlhfjob("old", "5"), an_rlhfjob("new", "9")
    cache.put(old)

    class Between:
        async def get(self, *_: Any) -> Object:
            cache.put(new)  # the watch is faster than the answer
            raise ApiError(404, "NotFound", "tiny")

    async def reload() -> None:
        await KubernetesCluster(cast(Api, Between()), cache, Platform(), {}).reload(key)

    asyncio.run(reload())
    found = cache.job(key)
    assert found is not None
    assert found["metadata"]["uid"] == "new"
