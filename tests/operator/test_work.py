"""Passes that break off: their job says so, is tried again, and holds up no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, cast

import pytest
from builders import NOON, a_job
from rlhf_api.job import RLHFJob
from rlhf_api.status import Condition, JobStatus
from rlhf_operator import queue as work_queue
from rlhf_operator import work as work_module
from rlhf_operator.api import NotLeading
from rlhf_operator.cluster import KubernetesCluster
from rlhf_operator.controller import StatusRefused
from rlhf_operator.events import Event
from rlhf_operator.metrics import Metrics
from rlhf_operator.names import JobKey
from rlhf_operator.observed import Observed
from rlhf_operator.queue import WorkQueue
from rlhf_operator.render import Platform
from rlhf_operator.watches import Restored
from rlhf_operator.work import work

BAD, GOOD = JobKey("default", "bad"), JobKey("default", "good")


class Broken:
    """Two jobs, of which nobody can look at one."""

    platform = Platform(is_one_machine=True)

    def __init__(self, error: Exception) -> None:
        self.error: Exception | None = error
        self.jobs = {key: a_job().named(key.name).build().to_dict() for key in (BAD, GOOD)}
        self.writes: list[JobKey] = []
        self.tries = 0

    def now(self) -> datetime:
        return NOON

    async def load(self, key: JobKey) -> dict[str, Any] | None:
        return self.jobs[key]

    async def observe(self, job: RLHFJob, now: datetime) -> Observed:
        assert now == NOON  # and not what this machine's clock shows
        if job.metadata.name == BAD.name:
            self.tries += 1
            if self.error:
                raise self.error
        return Observed()

    async def confirm(self, key: JobKey) -> None:
        return

    async def apply(self, job: RLHFJob, objects: Sequence[dict[str, Any]]) -> None:
        return

    async def write_status(self, manifest: dict[str, Any], status: JobStatus) -> None:
        key = JobKey("default", manifest["metadata"]["name"])
        self.writes.append(key)
        self.jobs[key] = self.jobs[key] | {"status": status.to_dict()}

    async def write_conditions(
        self, manifest: dict[str, Any], conditions: Sequence[Condition]
    ) -> None:
        return

    async def emit(self, key: JobKey, happened: Sequence[Event]) -> None:
        return

    def next_look(self, key: JobKey, now: datetime) -> None:
        return

    def condition(self, key: JobKey, kind: str) -> tuple[str, str, str]:
        found = (self.jobs[key].get("status") or {}).get("conditions") or []
        told = ((c["status"], c["reason"], c["message"]) for c in found if c["type"] == kind)
        return next(told, ("", "", ""))


def run(cluster: Broken, until: Callable[[], bool], metrics: Metrics | None = None) -> None:
    async def main() -> None:
        queue, served = WorkQueue(), cast(KubernetesCluster, cluster)
        working = asyncio.create_task(work(queue, served, metrics or Metrics(), 1))
        for key in (BAD, GOOD):
            queue.add(key)
        async with asyncio.timeout(60):
            while not until():
                assert not working.done()
                await asyncio.sleep(0.01)
        working.cancel()

    asyncio.run(main())


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_queue, "FIRST_BACKOFF", 0.01)


def test_a_mistake_of_ours_is_a_condition_and_other_jobs_go_on() -> None:
    cluster = Broken(ZeroDivisionError("of nothing " * 500 + "at the end"))
    run(cluster, lambda: cluster.tries >= 3 and GOOD in cluster.writes)
    status, reason, message = cluster.condition(BAD, "Reconciling")
    assert (status, reason) == ("True", "InternalError")
    assert "a mistake in the operator" in message
    assert message.endswith("at the end")
    assert len(message.encode()) <= 1024
    assert cluster.condition(BAD, "Stalled")[0] == "False"
    assert cluster.writes.count(BAD) == 1  # what stays as it is is not written again
    assert cluster.condition(GOOD, "Reconciling")[1] == "Starting"


def test_a_job_whose_status_is_refused_is_put_off_and_counted_and_other_jobs_go_on() -> None:
    class Unwritten(Broken):
        async def write_status(self, manifest: dict[str, Any], status: JobStatus) -> None:
            if manifest["metadata"]["name"] == BAD.name:
                raise StatusRefused("no")
            await super().write_status(manifest, status)

    cluster, metrics = Unwritten(ValueError()), Metrics()
    cluster.error = None
    run(cluster, lambda: cluster.tries >= 3 and GOOD in cluster.writes, metrics)
    assert BAD not in cluster.writes
    counted = metrics.registry.get_sample_value
    name, of = "rlhf_operator_reconcile_errors_total", {"reason": "StatusRefused"}
    assert (counted(name, of) or 0) >= 2


def test_a_backup_that_a_pass_finds_ends_the_process_and_is_no_mistake_of_ours() -> None:
    cluster = Broken(Restored("RLHFJob bad was at version 7, and is at 6 now"))

    async def main() -> None:
        queue = WorkQueue()
        queue.add(BAD)
        await asyncio.wait_for(work(queue, cast(KubernetesCluster, cluster), Metrics(), 1), 60)

    with pytest.raises(ExceptionGroup) as ended:
        asyncio.run(main())
    assert [type(error) for error in ended.value.exceptions] == [Restored]
    assert cluster.writes == []


def test_a_job_whose_resource_is_newer_is_asked_for_again_until_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A resource that is taken back leaves every job at its version: no watch tells of it."""

    class Upgraded(Broken):
        reloads = 0

        async def reload(self, key: JobKey) -> None:
            assert key == BAD
            self.reloads += 1
            if self.reloads == 3:
                del self.jobs[BAD]["spec"]["stages"]["sft"]["rehearsal"]

    monkeypatch.setattr(work_module, "NEWER_AGAIN", 0.01)
    cluster = Upgraded(ValueError())
    cluster.error = None
    cluster.jobs[BAD]["spec"]["stages"]["sft"]["rehearsal"] = 0.5
    run(cluster, lambda: cluster.condition(BAD, "Reconciling")[1] == "Starting")
    assert cluster.reloads == 3


def test_a_mistake_in_other_words_each_time_is_written_once() -> None:
    class Counting(Exception):
        def __str__(self) -> str:
            return f"try {cluster.tries}"

    cluster = Broken(Counting())
    run(cluster, lambda: cluster.tries >= 3)
    assert cluster.writes.count(BAD) == 1


def test_a_job_goes_on_once_its_passes_do() -> None:
    cluster = Broken(KeyError("x"))

    def has_recovered() -> bool:
        if cluster.condition(BAD, "Reconciling")[1] == "InternalError":
            cluster.error = None
        return cluster.condition(BAD, "Reconciling")[1] == "Starting"

    run(cluster, has_recovered)


def test_no_job_is_looked_at_any_more_once_the_lease_is_lost() -> None:
    """Each that was waiting would be gone through in vain, and be a warning in the log."""
    cluster = Broken(NotLeading("PUT status"))

    async def main() -> None:
        queue = WorkQueue()
        for key in (BAD, GOOD):
            queue.add(key)
        async with asyncio.timeout(60):
            await work(queue, cast(KubernetesCluster, cluster), Metrics(), 1)

    asyncio.run(main())
    assert (cluster.tries, cluster.writes) == (1, [])
