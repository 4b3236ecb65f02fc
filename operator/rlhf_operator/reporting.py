"""Puts the progress server, its board and the metrics together, for one replica."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from rlhf_operator.api import Api, Object
from rlhf_operator.cache import Cache
from rlhf_operator.metrics import Metrics
from rlhf_operator.names import JobKey, child_name
from rlhf_operator.progress_auth import Identity, Reporter, reporter_of
from rlhf_operator.progress_board import ProgressBoard
from rlhf_operator.progress_forward import KnownLeader
from rlhf_operator.progress_server import ProgressServer
from rlhf_operator.queue import WorkQueue
from rlhf_operator.tls import TLSFiles

TOKEN_REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"
REVIEW_SECONDS: Final = 4.0


class Reporting:
    """What trainers tell the operator, and what it tells Prometheus."""

    def __init__(
        self, cache: Cache, queue: WorkQueue, watch_ages: Callable[[], Mapping[str, float]]
    ) -> None:
        self.board = ProgressBoard(queue.add_after)
        self.metrics = Metrics(cache.jobs, watch_ages, lambda: len(queue))
        self._cache = cache
        self._uids: dict[JobKey, str] = {}

    def changed(self, key: JobKey) -> None:
        """Something happened to a job: what is known of one that is gone is forgotten, also where
        another one of its name is there before it was seen to go."""
        job, before = self._cache.job(key), self._uids.pop(key, None)
        if job:
            self._uids[key] = job["metadata"]["uid"]
        if job is None or before not in (None, self._uids[key]):
            self.board.forget(key)

    async def serve(
        self, api: Api, leader: Callable[[], KnownLeader], port: int, tls: TLSFiles | None = None
    ) -> None:
        """Takes reports until it is cancelled."""

        async def create_review(body: Object) -> Object:
            return await api.request(
                "POST",
                TOKEN_REVIEWS,
                body=body,
                label="tokenreviews",
                fenced=False,
                timeout=REVIEW_SECONDS,
            )

        server = ProgressServer(
            create_review=create_review,
            works_on=self.works_on,
            take=self.board.take,
            leader=leader,
            count=self.metrics.reported,
        )
        try:
            await server.start(None, port, tls)
            await asyncio.Event().wait()
        finally:
            await server.close()

    def works_on(self, identity: Identity, reporter: Reporter) -> bool:
        """Whether the pod is there, and of that attempt of the RLHFJob of today."""
        key = JobKey(reporter.namespace, reporter.job)
        name = child_name(reporter.job, reporter.stage, reporter.attempt)
        owner, pod = self._cache.job(key), self._cache.child(key, "Pod", identity.pod)
        job = self._cache.child(key, "Job", name)
        if owner is None or pod is None or job is None or pod["metadata"]["uid"] != identity.uid:
            return False
        owners = [item["uid"] for item in job["metadata"].get("ownerReferences") or []]
        return owner["metadata"]["uid"] in owners and reporter_of(pod, job) == reporter
