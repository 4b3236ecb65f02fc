"""When a kubelet is to start the operator anew, and when it takes it for ready."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient
from rlhf_operator.api import Api, client_settings
from rlhf_operator.leader import Leader
from rlhf_operator.metrics import Metrics
from rlhf_operator.replica import Replica
from rlhf_operator.serving import HUNG, Probes
from rlhf_operator.settings import Settings


def health(probes: Probes) -> int:
    """The answer to a liveness probe."""
    return asyncio.run(probes._healthz(cast(web.Request, None))).status


@pytest.mark.parametrize(("holder", "is_ready"), [(None, False), ("other", True), ("me", False)])
def test_a_leader_that_has_not_seen_its_namespaces_is_not_ready(
    holder: str | None, is_ready: bool
) -> None:
    """It waits for a right that it does not have, and does nothing."""
    replica = Replica(Settings())
    replica._leader = Leader(cast(Api, None), "ns", "me")
    replica._leader.holder = holder
    assert replica._is_ready() is is_ready
    replica._is_synced = True
    assert replica._is_ready()


@pytest.mark.parametrize(("age", "status"), [(HUNG - 1, 200), (HUNG + 1, 503)])
def test_a_watch_that_hangs_ends_the_process(age: float, status: int) -> None:
    assert health(Probes(lambda: {"pods": age}, lambda: True, Metrics())) == status


def test_a_new_authority_of_the_api_server_needs_a_new_process(tmp_path: Path) -> None:
    """Its clients, kopf's too, read certificates once: the server stays a stranger to them."""
    file = tmp_path / "ca.crt"
    file.write_text("old")
    probes = Probes(dict, lambda: True, Metrics(), file)
    assert health(probes) == 200
    file.unlink()  # for a moment
    assert health(probes) == 200
    file.write_text("old and new")
    assert health(probes) == 503


def test_the_authority_is_the_one_that_the_client_goes_by(tmp_path: Path) -> None:
    async def authority(file: str | None) -> Path | None:
        settings = client_settings()
        settings.ssl_ca_cert = None
        client = ApiClient(settings)
        settings.ssl_ca_cert = file
        async with client:
            return Api(client).authority

    assert asyncio.run(authority("/var/ca.crt")) == Path("/var/ca.crt")
    assert asyncio.run(authority(None)) is None
