"""How the operator finds its API server."""

from __future__ import annotations

import asyncio
import warnings

import pytest
from kubernetes.aio import config
from kubernetes.aio.client import Configuration
from rlhf_operator.api import Api


def test_in_a_pod_it_takes_the_pods_own_access_without_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def access_of_the_pod(client_configuration: Configuration) -> None:
        client_configuration.host = "https://10.0.0.1:443"

    monkeypatch.setattr(config, "KUBE_CONFIG_DEFAULT_LOCATION", "/tmp/.kube/nowhere")
    monkeypatch.setattr(config, "load_incluster_config", access_of_the_pod)
    assert asyncio.run(host()) == "https://10.0.0.1:443"


async def host() -> str:
    """Warnings are errors here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        api = await Api.connect()
    await api.close()
    return str(api._client.configuration.host)
