"""The operator process: puts the parts together, and takes them apart at SIGTERM.

kopf ─ RLHFJobs ─┐
watches ─ children ─┴─► cache ──► work queue ──► passes, while the lease is held ──► API server
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Final

from aiohttp import web

from rlhf_operator.api import Api, ApiError, Object, pause_after
from rlhf_operator.cache import Cache
from rlhf_operator.cluster import RLHFJOBS, KubernetesCluster
from rlhf_operator.discovery import discover, kinds
from rlhf_operator.handlers import watch_jobs
from rlhf_operator.leader import Leader
from rlhf_operator.queue import WorkQueue
from rlhf_operator.render import Platform
from rlhf_operator.settings import Settings, parse
from rlhf_operator.watches import CHILDREN, Watch, refresh_all
from rlhf_operator.work import work

log = logging.getLogger(__name__)

DISCOVER_EVERY: Final = 300.0
"""Seconds between two looks at what is served: a gang scheduler may be installed at any time."""
RELIST_EVERY: Final = 600.0
"""Seconds between two lists of all RLHFJobs: kopf does not tell what went while it listed anew."""
HUNG: Final = 240.0
"""Seconds without a sign of life of a watch or of the event loop, after which to start anew."""


class Operator:
    """One replica."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.queue = WorkQueue()
        self.cache = Cache(self.queue.add)
        self.leader: Leader | None = None
        self.is_synced = False
        self._beat = time.monotonic()
        self._stop_kopf = threading.Event()
        self._watches: list[Watch] = []
        self._jobs: list[Watch] = []

    async def run(self) -> None:
        """Until it is cancelled."""
        api = await Api.connect(may_write=self._may_write)
        try:
            cluster = await self._cluster(api)
            scopes = self.settings.namespaces or (None,)
            self._jobs = [Watch(api, self.cache, RLHFJOBS, n, selector="") for n in scopes]
            self._watches = [Watch(api, self.cache, r, n) for n in scopes for r in CHILDREN]
            async with asyncio.TaskGroup() as group:
                for watch in self._watches:
                    group.create_task(watch.run())
                group.create_task(self._kopf())
                group.create_task(self._relist())
                group.create_task(self._discover(api, cluster))
                group.create_task(self._heartbeat())
                group.create_task(self._serve())
                group.create_task(self._lead(api, cluster))
        finally:
            await api.close()

    def _may_write(self) -> bool:
        return self.leader is None or self.leader.leads()

    async def _cluster(self, api: Api) -> KubernetesCluster:
        """Waits for the API server, and for the resource to be installed."""
        failures = 0
        while True:
            try:
                served = await discover(api)
                if (RLHFJOBS.api_version, RLHFJOBS.kind) in served:
                    break
                log.warning("The API server does not serve RLHFJobs yet: install the CRD.")
            except ApiError as error:
                log.warning("Waiting for the API server: %s", error)
            failures += 1
            await pause_after(failures)
        platform = self._platform(kinds(served))
        return KubernetesCluster(api, self.cache, platform, served, instance=self.settings.identity)

    def _platform(self, served: frozenset[str]) -> Platform:
        return Platform(
            served=served,
            gang_order=self.settings.gang_order,
            progress_url=self.settings.progress_url,
            coscheduling_profile=self.settings.coscheduling_profile,
        )

    async def _lead(self, api: Api, cluster: KubernetesCluster) -> None:
        """Passes are made only while this process leads, and on data that is younger than that."""
        settings = self.settings
        if not settings.leader_election:
            await self._work(cluster)
            return
        identity = f"{settings.identity}_{uuid.uuid4().hex[:8]}"
        self.leader = leader = Leader(api, settings.lease_namespace, identity)
        async with asyncio.TaskGroup() as group:
            group.create_task(leader.run())
            while True:
                await leader.won()
                log.info("This process leads.")
                term = asyncio.create_task(self._work(cluster))
                losing = asyncio.create_task(leader.lost())
                try:
                    await asyncio.wait({term, losing}, return_when=asyncio.FIRST_COMPLETED)
                    if term.done():
                        term.result()
                finally:
                    losing.cancel()
                    term.cancel()
                    await asyncio.gather(term, losing, return_exceptions=True)
                    leader.resign()
                log.warning("The lease is lost. What was under way has been dropped.")

    async def _work(self, cluster: KubernetesCluster) -> None:
        await refresh_all([*self._watches, *self._jobs])
        self.is_synced = True
        self.queue.clear()
        for key in self.cache.known():
            self.queue.add(key)
        await work(self.queue, cluster, workers=self.settings.workers)

    async def _kopf(self) -> None:
        loop = asyncio.get_running_loop()

        def take(kind: str | None, item: Object) -> None:
            to_cache = self.cache.remove if kind == "DELETED" else self.cache.put
            loop.call_soon_threadsafe(to_cache, item)

        thread = threading.Thread(
            target=watch_jobs,
            args=(take, self.settings.namespaces, self._stop_kopf),
            name="kopf",
            daemon=True,
        )
        thread.start()
        try:
            await asyncio.Event().wait()
        finally:
            self._stop_kopf.set()

    async def _relist(self) -> None:
        while True:
            await asyncio.sleep(RELIST_EVERY)
            await refresh_all(self._jobs)

    async def _discover(self, api: Api, cluster: KubernetesCluster) -> None:
        while True:
            await asyncio.sleep(DISCOVER_EVERY)
            with contextlib.suppress(ApiError):
                cluster.served = await discover(api)
                cluster.platform = self._platform(kinds(cluster.served))

    async def _heartbeat(self) -> None:
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(1.0)

    async def _serve(self) -> None:
        """/healthz and /readyz."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, None, self.settings.health_port).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    async def _healthz(self, request: web.Request) -> web.Response:
        """Not whether the API server answers: a new process would not reach it either."""
        ages = {w.resource.plural: round(w.age) for w in self._watches}
        ages["loop"] = round(time.monotonic() - self._beat)
        is_well = all(age < HUNG for age in ages.values())
        return web.json_response({"seconds since": ages}, status=200 if is_well else 503)

    async def _readyz(self, request: web.Request) -> web.Response:
        is_ready = self.is_synced or (self.leader is not None and self.leader.holder is not None)
        return web.Response(text="ok" if is_ready else "starting", status=200 if is_ready else 503)


async def _until_signalled(settings: Settings) -> None:
    running = asyncio.create_task(Operator(settings).run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running


def main(words: Sequence[str] = ()) -> int:
    """The exit code."""
    settings = parse(words)
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)-7s %(name)s %(message)s"
    )
    for noisy in ("kopf", "aiohttp"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
    asyncio.run(_until_signalled(settings))
    return 0
