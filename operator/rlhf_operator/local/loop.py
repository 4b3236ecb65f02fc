"""Runs a job to its end on one machine, by the same passes as on a cluster."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from rlhf_api.job import RLHFJob
from rlhf_api.status import JobStatus

from rlhf_operator.controller import reconcile_once
from rlhf_operator.events import Event
from rlhf_operator.local.cluster import LocalCluster
from rlhf_operator.local.fingerprints import fingerprints
from rlhf_operator.local.machine import Machine, fit_to_machine, this_machine
from rlhf_operator.local.progress_server import LoopbackServer
from rlhf_operator.local.store import Store, annotated
from rlhf_operator.names import ANNOTATION_RETRY_STAGE, JobKey

INTERVAL: Final = 0.05
"""Seconds between two looks at which pods run: cheap, and what makes stages follow at once."""
PASS_EVERY: Final = 1.0
"""Seconds between two passes while nothing ends: trainers report no more often."""


def run(
    job: RLHFJob,
    directory: Path,
    *,
    on_change: Callable[[RLHFJob], None],
    on_event: Callable[[Event], None] | None = None,
    machine: Machine | None = None,
) -> RLHFJob:
    """Runs what has not been reached yet, and returns the job with its final status.

    Blocks until all stages have succeeded, or nothing can go on without somebody's doing. Local
    paths in the job are absolute, or relative to the current directory. KeyboardInterrupt (Ctrl-C,
    or SIGTERM) ends the pods gracefully, so that they save, writes the status, and is raised again.
    Raises LocalRunError for what the user can mend.
    """
    store = Store(directory, job, on_change)
    server = LoopbackServer()
    try:
        machine = machine or this_machine()
        fitted = _retried(fit_to_machine(store.job, len(machine.gpus), machine.cpus), store.status)
        seen = fingerprints(store.job.spec, store.volumes, store.directory)
        cluster = LocalCluster(fitted, store, machine, server, seen, on_event)
        with _sigterm_as_interrupt():
            _run_to_the_end(cluster)
        return store.written
    finally:
        server.close()
        store.close()


def _retried(job: RLHFJob, status: JobStatus | None) -> RLHFJob:
    """Each run is a person's wish to try again, however the attempts of the last one ended."""
    stages = (status or JobStatus()).every_stage()
    again = {f"{ANNOTATION_RETRY_STAGE}{name}": str(was.attempt) for name, was in stages.items()}
    return annotated(job, again)


def _run_to_the_end(cluster: LocalCluster) -> None:
    try:
        while not _pass(cluster):
            _wait_for_an_end(cluster)
    except KeyboardInterrupt:
        _stop(cluster)
        raise


def _pass(cluster: LocalCluster) -> bool:
    """Passes until nothing is to be done at once; True when nothing will start by itself either."""
    meta = cluster.job.metadata
    while True:
        cluster.step()
        has_work = cluster.has_work()  # before the look: what ends after it was not seen by it
        key = JobKey(meta.namespace, meta.name)
        done = asyncio.run(reconcile_once(cluster, key, datetime.now(UTC)))
        if not done.actions:
            return done.retry_at is None and not has_work


def _wait_for_an_end(cluster: LocalCluster) -> None:
    """Until a pod ends, or the next pass is due."""
    due = time.monotonic() + PASS_EVERY
    running = cluster.running()
    while time.monotonic() < due and cluster.running() == running:
        time.sleep(INTERVAL)


def _stop(cluster: LocalCluster) -> None:
    """Ends the pods, and writes down how they ended. A second interrupt kills them."""
    cluster.interrupt()
    try:
        _wait_for_pods(cluster)
    except KeyboardInterrupt:
        cluster.kill()
        _wait_for_pods(cluster)
    _pass(cluster)


def _wait_for_pods(cluster: LocalCluster) -> None:
    cluster.disrupt()
    while cluster.is_live():
        cluster.end_orphans()
        time.sleep(INTERVAL)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does, unless the caller has a handler of its own."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
