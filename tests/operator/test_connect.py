"""How the operator finds its API server."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException
from rlhf_cli.targets.connection import Access, connected
from rlhf_operator.api import Api, ApiError, Resource
from rlhf_operator.watches import PODS

MANY = 130
"""Watches of 20 namespaces, or logs of a gang that are followed."""


def test_in_a_pod_it_takes_the_pods_own_access_without_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def access_of_the_pod(client_configuration: Configuration) -> None:
        client_configuration.host = "https://10.0.0.1:443"

    monkeypatch.setattr(config, "KUBE_CONFIG_DEFAULT_LOCATION", "/tmp/.kube/nowhere")
    monkeypatch.setattr(config, "load_incluster_config", access_of_the_pod)
    assert asyncio.run(host()) == "https://10.0.0.1:443"


@pytest.mark.parametrize("error", [OSError("input/output error"), ConfigException("it is empty")])
def test_a_token_that_cannot_be_read_anew_is_an_error_of_one_request(error: Exception) -> None:
    async def main() -> None:
        settings = Configuration(host="https://10.0.0.1", api_key={"BearerToken": "bearer old"})

        def refresh(_: Configuration) -> None:
            raise error

        settings.refresh_api_key_hook = refresh
        api = Api(ApiClient(settings))
        with pytest.raises(ApiError, match=str(error)):
            await api.get(PODS, "team", "p")
        await api.close()

    asyncio.run(main())


async def host() -> str:
    """Warnings are errors here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        api = await Api.connect()
    await api.close()
    return str(api._client.configuration.host)


def test_an_operator_of_many_namespaces_has_connections_left_for_its_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def operator() -> None:
        async with a_server() as url:
            monkeypatch.setattr(config, "KUBE_CONFIG_DEFAULT_LOCATION", "/tmp/.kube/nowhere")
            monkeypatch.setattr(
                config,
                "load_incluster_config",
                lambda client_configuration: setattr(client_configuration, "host", url),
            )
            api = await Api.connect()
            try:
                await answers_beside_many_streams(api)
            finally:
                await api.close()

    asyncio.run(operator())


def test_rlhfctl_sees_the_job_beside_the_logs_of_a_large_gang(tmp_path: Path) -> None:
    async def rlhfctl() -> None:
        async with a_server() as url:
            kubeconfig = tmp_path / "config"
            kubeconfig.write_text(yaml.safe_dump(leading_to(url)))
            async with connected(Access(str(kubeconfig))) as target:
                await answers_beside_many_streams(target.api)

    asyncio.run(rlhfctl())


def leading_to(url: str) -> dict[str, object]:
    return {
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "current-context": "here",
    }


async def answers_beside_many_streams(api: Api) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(MANY):
            stream = await stack.enter_async_context(aclosing(api.lines("/log", {}, "pods/log")))
            assert await asyncio.wait_for(anext(stream), 5) == b"a line"
        found = await asyncio.wait_for(api.get(Resource("v1", "Pod", "pods"), "team", "p"), 5)
        assert found == {"kind": "Pod"}


@asynccontextmanager
async def a_server() -> AsyncIterator[str]:
    """An API server whose logs are never at their end."""

    async def log(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"a line\n")
        await asyncio.sleep(60)
        return response

    async def pod(request: web.Request) -> web.Response:
        return web.json_response({"kind": "Pod"})

    application = web.Application()
    application.add_routes([web.get("/log", log), web.get("/api/v1/{rest:.*}", pod)])
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
