"""kopf's part of the operator, on a real API server."""

from __future__ import annotations

import getpass
import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import kopf
import pytest
from cluster.control_plane import ControlPlane
from cluster_jobs import Jobs, manifest
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
        assert seen.get(timeout=20)["metadata"]["name"] == "tiny"
