"""How the operator finds its API server."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, kube_config
from rlhf_cli.targets.connection import Access, connected
from rlhf_operator.api import Api, ApiError, Resource
from rlhf_operator.server_clock import ServerClock
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


@pytest.mark.parametrize("who", ["operator", "rlhfctl"])
def test_a_token_that_the_server_takes_no_longer_is_read_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, who: str
) -> None:
    """As `exec` plug-ins of clouds issue them for 15 minutes, and kubelets write them to a file.
    The client reads one of a kubeconfig once; that of a pod goes by the wall clock."""
    token, kubeconfig = tmp_path / "token", tmp_path / "config"
    token.write_text("first")

    async def main() -> None:
        async with a_server(lambda: f"Bearer {token.read_text()}") as url:
            kubeconfig.write_text(json.dumps(leading_to(url, {"tokenFile": str(token)})))
            monkeypatch.setattr(config, "KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
            monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
            async with AsyncExitStack() as stack:
                if who == "operator":
                    api = await Api.connect()
                    stack.push_async_callback(api.close)
                else:
                    api = (await stack.enter_async_context(connected(Access()))).api
                await api.get(PODS, "team", "p")
                token.write_text("second")
                answers = [api.get(PODS, "team", "p"), api.get(PODS, "team", "p")]
                assert await asyncio.gather(*answers) == [{"kind": "Pod"}] * 2

    asyncio.run(main())


def test_a_server_that_takes_no_token_is_asked_once_more_and_no_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A plug-in takes seconds: a server that has lost its keys must not have it run for ever."""
    asked: list[str] = []
    kubeconfig = tmp_path / "config"

    def another() -> str:
        asked.append("")
        return "Bearer another"

    async def main() -> None:
        async with a_server(another) as url:
            kubeconfig.write_text(json.dumps(leading_to(url, {"token": "any"})))
            monkeypatch.setattr(config, "KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
            monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
            api = await Api.connect()
            for _ in range(3):
                with pytest.raises(ApiError, match="401"):
                    await api.get(PODS, "team", "p")
            await api.close()

    asyncio.run(main())
    assert len(asked) == 4


def test_its_clock_is_the_api_server_s() -> None:
    async def main() -> None:
        async with a_server() as url:
            api = Api(ApiClient(Configuration(host=url)))
            api.clock = ServerClock(lambda: datetime.now(UTC) + timedelta(hours=1))
            await api.get(PODS, "team", "p")
            assert abs(api.clock.now() - datetime.now(UTC)) < timedelta(minutes=1)
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


@pytest.mark.parametrize("exempt", ["", "127.0.0.1"])
def test_it_goes_through_the_proxy_of_the_environment_and_asks_for_that_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exempt: str
) -> None:
    """aiohttp would ask for a proxy, and look into ~/.netrc, before each request and in a thread;
    beside a token it refuses what it finds there."""
    asked: list[str] = []
    netrc, kubeconfig = tmp_path / "netrc", tmp_path / "config"
    netrc.write_text("default login me password mine\n")
    monkeypatch.setenv("NETRC", str(netrc))

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(NoThreads())
        async with a_server() as server, a_proxy(asked) as proxy:
            monkeypatch.setenv("http_proxy", proxy)
            monkeypatch.setenv("no_proxy", exempt)
            kubeconfig.write_text(json.dumps(leading_to(server, {"token": "any"})))
            async with connected(Access(str(kubeconfig))) as target:
                monkeypatch.delenv("http_proxy")
                for _ in range(2):
                    assert await target.api.get(PODS, "team", "p") == {"kind": "Pod"}

    asyncio.run(main())
    assert asked == ([] if exempt else ["/api/v1/namespaces/team/pods/p"] * 2)


class NoThreads(ThreadPoolExecutor):
    """For what is to be done without any."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        raise AssertionError(f"{fn} runs in a thread")


@asynccontextmanager
async def a_proxy(asked: list[str]) -> AsyncIterator[str]:
    """Answers in place of the server that a request is for."""

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.json_response({"kind": "Pod"})

    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def leading_to(url: str, user: dict[str, str] | None = None) -> dict[str, object]:
    return {
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": user or {}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "current-context": "here",
    }


async def answers_beside_many_streams(api: Api) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(MANY):
            stream = await stack.enter_async_context(aclosing(api.lines("/log", {}, "pods/log")))
            assert await asyncio.wait_for(anext(stream), 60) == b"a line"
        found = await asyncio.wait_for(api.get(Resource("v1", "Pod", "pods"), "team", "p"), 60)
        assert found == {"kind": "Pod"}


@asynccontextmanager
async def a_server(taken: Callable[[], str] = str) -> AsyncIterator[str]:
    """An API server whose logs are never at their end. `taken`: whose requests for a pod it takes,
    by their Authorization; empty: anybody's."""

    async def log(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"a line\n")
        await asyncio.sleep(600)
        return response

    async def pod(request: web.Request) -> web.Response:
        if (wanted := taken()) and request.headers.get("Authorization") != wanted:
            return web.json_response({"reason": "Unauthorized"}, status=401)
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
