"""One replica of the operator: its parts, put together.

kopf ─ RLHFJobs ─┐
watches ─ children ─┴─► cache ──► work queue ──► passes, while the lease is held ──► API server
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import uuid
from collections.abc import Iterable
from typing import Final

from rlhf_operator import kueue
from rlhf_operator.admission import Admission
from rlhf_operator.api import Api, ApiError, Object, Resource, pause_after
from rlhf_operator.cache import Cache
from rlhf_operator.cluster import RLHFJOBS, KubernetesCluster
from rlhf_operator.discovery import Served, discover, kinds
from rlhf_operator.handlers import watch_jobs
from rlhf_operator.leader import Leader
from rlhf_operator.names import LABEL_JOB, JobKey
from rlhf_operator.progress_forward import KnownLeader, address_in, address_of
from rlhf_operator.queue import WorkQueue
from rlhf_operator.render import Platform
from rlhf_operator.render.gang import GANGS, made_kinds
from rlhf_operator.reporting import Reporting
from rlhf_operator.serving import Probes
from rlhf_operator.settings import Settings
from rlhf_operator.tls import TLSFiles
from rlhf_operator.watches import CHILDREN, Watch, refresh_all
from rlhf_operator.work import work

log = logging.getLogger(__name__)

DISCOVER_EVERY: Final = 300.0
"""Seconds between two looks at what is served: a gang scheduler may be installed at any time."""
DISCOVER_AGAIN: Final = 5.0
"""Seconds between two looks that somebody asked for, who has met a kind that is not served."""
RELIST_EVERY: Final = 600.0
"""Seconds between two lists of all RLHFJobs: kopf does not tell what went while it listed anew."""
REST: Final = 0.1
"""Seconds between two passes over one job: pods and Jobs change several times in a row."""


class Replica:
    """One process among several, of which one leads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._queue = WorkQueue(REST)
        self._cache = Cache(self._changed)
        self._reporting = Reporting(self._cache, self._queue, self._ages)
        self._metrics = self._reporting.metrics
        self._leader: Leader | None = None
        self._is_synced = False
        self._is_at_work = False
        self._watches: list[Watch] = []
        self._jobs: list[Watch] = []
        self._tasks = asyncio.TaskGroup()

    async def run(self) -> None:
        """Until it is cancelled."""
        settings, metrics = self._settings, self._metrics
        api = await Api.connect(self._may_write, metrics.api_request)
        try:
            async with self._tasks as tasks:
                probes = Probes(self._ages, self._is_ready, metrics, api.authority)
                tasks.create_task(probes.serve(settings.health_port))
                served = await self._served(api)
                cluster = KubernetesCluster(
                    api,
                    self._cache,
                    self._platform(served),
                    served,
                    self._reporting.board.of,
                    metrics.wrote,
                    settings.identity,
                    api.clock.now,
                )
                if settings.leader_election:
                    identity = f"{settings.identity}_{uuid.uuid4().hex[:8]}_{self._address}"
                    self._leader = Leader(api, settings.lease_namespace, identity)
                self._start(api, cluster)
        finally:
            await api.close()

    def _start(self, api: Api, cluster: KubernetesCluster) -> None:
        """Everything that needs the API server and the CRD."""
        self._jobs = [Watch(api, self._cache, RLHFJOBS, n, "") for n in self._scopes]
        self._watch_served(api, cluster.children.served)
        self._answer(api, cluster)
        for running in (self._kopf(api), self._relist(), self._discover(api, cluster)):
            self._tasks.create_task(running)
        self._tasks.create_task(self._lead(cluster))

    @property
    def _scopes(self) -> tuple[str | None, ...]:
        return self._settings.namespaces or (None,)

    @property
    def _address(self) -> str:
        return address_of(self._settings.pod_ip, self._settings.progress_port)

    def _changed(self, key: JobKey) -> None:
        if self._is_at_work:  # a replica that waits begins with all jobs, and takes none before
            self._queue.add(key)
        self._reporting.changed(key)

    def _who_leads(self) -> KnownLeader:
        """Where trainers' reports have to go."""
        if self._leader is None:
            return KnownLeader(is_here=True)
        return KnownLeader(self._leader.leads(), address_in(self._leader.holder or ""))

    def _may_write(self) -> bool:
        return self._leader is None or self._leader.leads()

    def _is_ready(self) -> bool:
        """A replica that waits is ready to take over; one that leads, once it has seen everything:
        without a right to one of its namespaces it does nothing in any."""
        leader = self._leader
        waits = leader is not None and leader.holder not in (None, leader.identity)
        return self._is_synced or waits

    def _ages(self) -> dict[str, float]:
        ages: dict[str, float] = {}
        for watch in self._watches:
            name = watch.resource.plural
            ages[name] = max(watch.age, ages.get(name, 0.0))
        return ages

    def _watch_served(self, api: Api, served: Served) -> None:
        """Whatever a job may make here, and what Kueue says of it."""
        self._watch(api, [*CHILDREN, *_gang_resources(served)])
        self._watch(api, _kueue_workloads(served), kueue.LABEL_OWNER)

    def _watch(self, api: Api, resources: Iterable[Resource], selector: str = LABEL_JOB) -> None:
        known = {watch.resource for watch in self._watches}
        for resource in resources:
            if resource not in known:
                added = [Watch(api, self._cache, resource, n, selector) for n in self._scopes]
                self._watches += added
                for watch in added:
                    self._tasks.create_task(watch.run())

    def _answer(self, api: Api, cluster: KubernetesCluster) -> None:
        """Starts what answers to trainers and to the API server, where it is asked for."""
        settings = self._settings
        folder = settings.tls_directory
        tls = TLSFiles.of(folder, settings.tls_name) if folder else None
        if url := settings.progress_url:
            secure = tls if url.startswith("https://") else None
            port = settings.progress_port
            self._tasks.create_task(self._reporting.serve(api, self._who_leads, port, secure))
        if settings.webhook_port and tls:
            admission = Admission(api.get, lambda: cluster.platform)
            self._tasks.create_task(admission.serve(None, settings.webhook_port, tls))

    async def _served(self, api: Api) -> Served:
        """Waits for the API server, and for the resource to be installed."""
        failures = 0
        while True:
            try:
                served = await discover(api)
                if (RLHFJOBS.api_version, RLHFJOBS.kind) in served:
                    return served
                log.warning("The API server does not serve RLHFJobs yet: install the CRD.")
            except ApiError as error:
                log.warning("Waiting for the API server: %s", error)
            failures += 1
            await pause_after(failures)

    def _platform(self, served: Served) -> Platform:
        return Platform(
            served=kinds(served),
            gang_order=self._settings.gang_order,
            progress_url=self._settings.progress_url,
            progress_authority=self._progress_authority(),
            coscheduling_profile=self._settings.coscheduling_profile,
            defaults=self._settings.defaults,
        )

    def _progress_authority(self) -> str | None:
        """None over HTTP, and where the server's certificate is of an authority known to all."""
        folder, url = self._settings.tls_directory, self._settings.progress_url
        if not folder or not (url or "").startswith("https://"):
            return None
        try:
            return TLSFiles.of(folder, self._settings.tls_name).authority.read_text("utf-8") or None
        except OSError:  # gone for a moment: such an attempt reports nothing
            return None

    async def _discover(self, api: Api, cluster: KubernetesCluster) -> None:
        while True:
            await asyncio.sleep(DISCOVER_AGAIN)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(cluster.children.unserved.wait(), DISCOVER_EVERY)
            cluster.children.unserved.clear()
            with contextlib.suppress(ApiError):
                cluster.children.served = await discover(api)
                cluster.platform = self._platform(cluster.children.served)
                self._watch_served(api, cluster.children.served)

    async def _lead(self, cluster: KubernetesCluster) -> None:
        """Passes are made only while this process leads, and on data that is younger than that."""
        leader = self._leader
        if leader is None:
            await self._work(cluster)
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(leader.run())
            while True:
                await leader.won()
                log.info("This process leads.")
                self._metrics.leads(True)
                await self._serve_term(leader, cluster)
                self._metrics.leads(False)
                log.warning("The lease is lost. What was under way has been dropped.")

    async def _serve_term(self, leader: Leader, cluster: KubernetesCluster) -> None:
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
            self._reporting.board.clear()
            leader.resign()

    async def _work(self, cluster: KubernetesCluster) -> None:
        await refresh_all([*self._watches, *self._jobs])
        self._is_synced = self._is_at_work = True
        try:
            for key in self._cache.known():
                self._queue.add(key)
            await work(self._queue, cluster, self._metrics, self._settings.workers)
        finally:
            self._is_at_work = False
            self._queue.clear()

    async def _kopf(self, api: Api) -> None:
        loop, stop = asyncio.get_running_loop(), threading.Event()

        def until_served() -> None:
            asyncio.run_coroutine_threadsafe(self._served(api), loop).result()

        def take(kind: str | None, item: Object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(self._heard, kind, item)

        arguments = (take, self._settings.namespaces, stop, until_served)
        threading.Thread(target=watch_jobs, args=arguments, name="kopf", daemon=True).start()
        try:
            await asyncio.Event().wait()
        finally:
            stop.set()

    def _heard(self, kind: str | None, item: Object) -> None:
        if kind == "DELETED":
            self._cache.remove(item)
        else:
            self._cache.put(item)

    async def _relist(self) -> None:
        while True:
            await asyncio.sleep(RELIST_EVERY)
            await refresh_all(self._jobs)


def _kueue_workloads(served: Served) -> list[Resource]:
    """The kind in which Kueue tells why a Job waits, in the newest version that is served."""
    newest = GANGS["kueue"].kinds(Platform(served=kinds(served)))[:1]
    return [resource for where, resource in served.items() if "/".join(where) in newest]


def _gang_resources(served: Served) -> list[Resource]:
    """Kinds of gang objects that the operator may make on this cluster."""
    platform = Platform(served=kinds(served))
    made = {kind for name in GANGS for kind in made_kinds(name, platform)}
    return [resource for where, resource in served.items() if "/".join(where) in made]
