"""The proxy does to a call what the plan says, and nothing to any other."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cluster.control_plane import ControlPlane

from faults.audit import Audit, Fault, Plan, once
from faults.proxy import Proxy
from faults.weather import Turn, Weather

PLAN = "POST configmaps/struck"
CARRIED_OUT = ("killed after", "504 after", "cut after")


class Caller:
    """What an operator would send."""

    def __init__(self, control_plane: ControlPlane, namespace: str, fault: Fault) -> None:
        self.audit = Audit(once(Plan(PLAN, fault)))
        self.kills = 0
        self._of = control_plane
        self._path = f"/api/v1/namespaces/{namespace}/configmaps"

    async def send(self, folder: Path) -> list[int | None]:
        """Codes of: another create, the one that is struck, the same again, a list."""
        async with Proxy(self._of.kubeconfig, self.audit, Weather(), self._kill) as proxy:
            proxy.write_kubeconfig(folder / "kubeconfig")
            config = json.loads((folder / "kubeconfig").read_text())
            headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}"}
            server = config["clusters"][0]["cluster"]["server"]
            async with aiohttp.ClientSession(server, headers=headers) as session:
                names = ("before", "struck", "struck")
                codes = [await self._create(session, name) for name in names]
                return [*codes, await _code(session.get(self._path))]

    async def _create(self, session: aiohttp.ClientSession, name: str) -> int | None:
        made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
        return await _code(session.post(self._path, json=made))

    def _kill(self) -> None:
        self.kills += 1


async def _code(request: Any) -> int | None:
    try:
        async with request as response:
            await response.read()
            return int(response.status)
    except aiohttp.ClientError:
        return None


@pytest.mark.parametrize(
    ("fault", "codes"),
    [
        ("killed before", [201, None, None, None]),
        ("killed after", [201, None, None, None]),
        ("409", [201, 409, 201, 200]),
        ("429", [201, 429, 201, 200]),
        ("500", [201, 500, 201, 200]),
        ("503", [201, 503, 201, 200]),
        ("504 after", [201, 504, 409, 200]),
        ("cut after", [201, None, 409, 200]),
    ],
)
def test_a_fault_strikes_once_and_where_it_was_planned(
    control_plane: ControlPlane,
    namespace: str,
    tmp_path: Path,
    fault: Fault,
    codes: list[int | None],
) -> None:
    caller = Caller(control_plane, namespace, fault)
    assert asyncio.run(caller.send(tmp_path)) == codes
    (struck,) = caller.audit.struck
    assert (struck.name, struck.fault) == (PLAN, fault)
    assert struck.code == (201 if fault in CARRIED_OUT else None)
    is_there = control_plane.client.find("v1/configmaps", "struck", namespace) is not None
    assert is_there == (struck.code is not None or 201 in codes[1:])
    assert caller.kills == fault.startswith("killed")


async def _asked(proxy: Proxy, folder: Path, path: str) -> tuple[int, str]:
    """Status of an answer, and how it begins."""
    proxy.write_kubeconfig(folder / "kubeconfig")
    config = json.loads((folder / "kubeconfig").read_text())
    headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}"}
    server = config["clusters"][0]["cluster"]["server"]
    async with (
        aiohttp.ClientSession(server, headers=headers) as session,
        session.get(path) as response,
    ):
        return response.status, (await response.content.readline()).decode()


def test_weather_turns_after_its_call_and_the_api_server_itself_says_410(
    installed: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    path = f"/apis/rlhf.dev/v1alpha1/namespaces/{namespace}/rlhfjobs"
    version = installed.client.request("GET", path)["metadata"]["resourceVersion"]
    watch = f"{path}?watch=true&timeoutSeconds=1&resourceVersion={version}"

    async def answers(turn: Turn, *paths: str) -> list[tuple[int, str]]:
        weather = Weather(turn)
        async with Proxy(installed.kubeconfig, Audit(), weather, lambda: None) as proxy:
            weather.notice("another call")
            before = await _asked(proxy, tmp_path, path)
            weather.notice(turn.after)
            return [before, *[await _asked(proxy, tmp_path, each) for each in paths]]

    (calm, _), (_, said), (_, later) = asyncio.run(answers(Turn("cut"), watch, watch))
    assert calm == 200
    assert '"code":410' in said
    assert '"code":410' not in later  # each watch once
    codes = [code for code, _ in asyncio.run(answers(Turn("503"), path, watch))]
    assert codes == [200, 503, 503]
