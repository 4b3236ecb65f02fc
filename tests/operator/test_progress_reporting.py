"""Which pod may report on what, by the operator's cache."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from progress_tokens import UID, a_child, a_pod
from rlhf_operator.cache import Cache
from rlhf_operator.cluster import KubernetesCluster
from rlhf_operator.leader import Leader
from rlhf_operator.names import JobKey
from rlhf_operator.observed import Progress
from rlhf_operator.progress_auth import Identity, Reporter
from rlhf_operator.queue import WorkQueue
from rlhf_operator.replica import Replica
from rlhf_operator.reporting import Reporting
from rlhf_operator.settings import Settings

POD = Identity("default", "tiny-ppo-3-0-x7k2p", UID)
OWN = Reporter("default", "tiny", "ppo", 3)


def put(cache: Cache, item: dict[str, Any], version: str, kind: str, kind_version: str) -> None:
    item = item | {"kind": kind, "apiVersion": kind_version}
    item["metadata"] = item["metadata"] | {"resourceVersion": version}
    cache.put(item)


def a_cache(job_uid: str = "r1", with_job: bool = True) -> Cache:
    """Of one RLHFJob with one attempt of one pod."""
    cache = Cache()
    parent = {"metadata": {"name": "tiny", "namespace": "default", "uid": job_uid}, "spec": {}}
    put(cache, parent, "1", "RLHFJob", "rlhf.dev/v1alpha1")
    child = a_child()
    child["metadata"]["labels"] = a_pod()["metadata"]["labels"]
    if with_job:
        put(cache, child, "2", "Job", "batch/v1")
    put(cache, a_pod(), "3", "Pod", "v1")
    return cache


def reporting(cache: Cache) -> Reporting:
    return Reporting(cache, WorkQueue(), dict)


def test_a_pod_works_on_its_attempt() -> None:
    assert reporting(a_cache()).works_on(POD, OWN)


@pytest.mark.parametrize(
    ("cache", "identity", "reporter"),
    [
        (Cache(), POD, OWN),
        (a_cache(with_job=False), POD, OWN),
        (a_cache(job_uid="a job of that name, made later"), POD, OWN),
        (a_cache(), POD._replace(uid="a pod of that name, made earlier"), OWN),
        (a_cache(), POD._replace(pod="tiny-ppo-3-1-aaaaa"), OWN),
        (a_cache(), POD, OWN._replace(attempt=2)),
        (a_cache(), POD, OWN._replace(stage="sft")),
        (a_cache(), POD, OWN._replace(job="big")),
        (a_cache(), POD, OWN._replace(namespace="other")),
    ],
)
def test_no_other_pod_does_and_it_on_nothing_else(
    cache: Cache, identity: Identity, reporter: Reporter
) -> None:
    assert not reporting(cache).works_on(identity, reporter)


def test_a_pod_of_one_attempt_does_not_work_on_another_that_is_there() -> None:
    cache, other = a_cache(), a_child(attempt=4)
    other["metadata"] |= {"uid": "j2", "labels": a_pod(attempt=4)["metadata"]["labels"]}
    put(cache, other, "4", "Job", "batch/v1")
    assert not reporting(cache).works_on(POD, OWN._replace(attempt=4))


def test_reports_of_a_job_that_is_gone_are_forgotten() -> None:
    cache = a_cache()
    made = reporting(cache)
    made.board = type(made.board)(lambda key, after: None)
    made.board.take(JobKey("default", "tiny"), "ppo", 3, Progress(40.0))
    made.changed(JobKey("default", "tiny"))
    assert made.board.of(JobKey("default", "tiny"))
    cache.remove(cache.job(JobKey("default", "tiny")) or {})
    made.changed(JobKey("default", "tiny"))
    assert not made.board.of(JobKey("default", "tiny"))


def test_a_job_made_again_starts_without_the_reports_of_the_one_before_it() -> None:
    cache = a_cache()
    desk, key = reporting(cache), JobKey("default", "tiny")
    desk.board = type(desk.board)(lambda key, after: None)
    desk.changed(key)
    desk.board.take(key, "ppo", 3, Progress(90.0))
    desk.changed(key)  # its status was written
    assert desk.board.of(key)
    again = {"metadata": {"name": "tiny", "namespace": "default", "uid": "another"}, "spec": {}}
    put(cache, again, "9", "RLHFJob", "rlhf.dev/v1alpha1")  # before the old one is seen to go
    desk.changed(key)
    assert desk.board.of(key) == {}


def test_what_is_reported_in_one_term_is_not_shown_in_a_later_one() -> None:
    """Another replica has led in the meantime, and has heard of more."""

    class Lapsed(Leader):
        def __init__(self) -> None:
            pass

        async def lost(self) -> None:
            return

    async def term() -> bool:
        replica = Replica(Settings())
        replica._reporting.board.take(JobKey("default", "tiny"), "ppo", 3, Progress(40.0))
        replica._work = lambda cluster: asyncio.sleep(60)  # type: ignore[method-assign,assignment]
        await replica._serve_term(Lapsed(), cast(KubernetesCluster, None))
        return bool(replica._reporting.board.of(JobKey("default", "tiny")))

    assert not asyncio.run(term())
