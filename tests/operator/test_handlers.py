"""kopf's part of the operator."""

from __future__ import annotations

import getpass
import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import kopf
import pytest
from cluster.client import PATIENCE
from cluster.control_plane import ControlPlane
from cluster_jobs import Jobs, condition, manifest, wait_until
from fresh_cluster import nothing_installed
from operator_process import OperatorProcess
from rlhf_operator import handlers
from rlhf_operator.api import Object
from rlhf_operator.handlers import Take, watch_jobs


@contextmanager
def watched(take: Take, namespace: str) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=watch_jobs, args=(take, [namespace], stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def login_to(plane: ControlPlane) -> Callable[..., kopf.ConnectionInfo]:
    config = json.loads(plane.kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    info = kopf.ConnectionInfo(
        server=cluster["server"], ca_path=cluster["certificate-authority"], token=user["token"]
    )
    return lambda **_: info


def test_jobs_are_seen_by_a_user_that_has_no_name(
    installed: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 65532")

    monkeypatch.setattr(getpass, "getuser", nameless)
    monkeypatch.setattr(kopf, "login_via_client", login_to(installed))
    seen: queue.Queue[Object] = queue.Queue()
    with watched(lambda _, job: seen.put(job), namespace):
        Jobs(installed.client, namespace).create(manifest(namespace, stages="sft"))
        assert seen.get(timeout=PATIENCE)["metadata"]["name"] == "tiny"


class KnowsNoPath(BaseHTTPRequestHandler):
    """As an API server that has yet to load its resources."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        return


def test_kopf_is_started_again_whatever_has_ended_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lives = threading.Semaphore(0)
    with ThreadingHTTPServer(("127.0.0.1", 0), KnowsNoPath) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"http://127.0.0.1:{server.server_port}"

        def login(**_: object) -> kopf.ConnectionInfo:
            lives.release()
            return kopf.ConnectionInfo(server=where)

        monkeypatch.setattr(kopf, "login_via_client", login)
        monkeypatch.setattr(handlers, "RESTART_AFTER", 0.01)
        with watched(lambda kind, job: None, "any"):
            assert all(lives.acquire(timeout=PATIENCE) for _ in range(2))
        server.shutdown()


def test_jobs_are_seen_again_after_somebody_has_replaced_the_resource(
    installed: ControlPlane, jobs: Jobs, run_operator: Callable[..., OperatorProcess]
) -> None:
    """A chart that is uninstalled and installed again deletes it, as a restored backup does."""
    operator = run_operator()
    jobs.create(manifest(jobs.namespace, stages="sft"))
    jobs.wait(lambda job: condition(job, "Reconciling")[0] == "True")
    with nothing_installed(installed.client):
        wait_until(lambda: "does not serve RLHFJobs" in operator.log())
    jobs.create(manifest(jobs.namespace, stages="sft"))
    jobs.wait(lambda job: condition(job, "Reconciling")[0] == "True")
    assert operator.is_running
