"""One campaign a run: the pipelines are run once, and each test looks at all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Scripted
from cluster.nodes import FakeNodes

from faults.audit import killed_at_every_call, once
from faults.campaign import ATTEMPTS, Campaign, play
from faults.invariants import Expected
from faults.ledger import Ledger
from faults.plans import every, sample
from faults.results import UNDISTURBED, Results
from faults.weather import Disturbance, disturbances

EVERY_CALL = "every call: killed before, then killed after"


@pytest.fixture(scope="package")
def gpus(fake_nodes: FakeNodes) -> Iterator[None]:
    """Room for all pipelines that run at a time."""
    nodes = [fake_nodes.add({"nvidia.com/gpu": 64}, cpu=256, memory="1Ti") for _ in range(2)]
    yield
    for node in nodes:
        fake_nodes.remove(node)


@pytest.fixture(scope="package")
def results(
    installed: ControlPlane,
    gpus: None,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Results:
    """Of a fixed sample, or of every fault at every call with `--faults=all`."""
    is_full = request.config.getoption("--faults") == "all"
    folder = tmp_path_factory.mktemp("faults")
    with Kubelet(installed.kubeconfig, Scripted(play)):
        return asyncio.run(campaign(installed, folder, is_full))


async def campaign(control_plane: ControlPlane, folder: Path, is_full: bool) -> Results:
    """First the run that nothing disturbs: its calls are those at which the faults strike."""
    async with Ledger(control_plane.kubeconfig) as ledger:
        campaign = Campaign(control_plane, ledger, folder)
        undisturbed = await campaign.run()
        calls = [call.name for call in undisturbed.audit.calls]
        plans = every(calls) if is_full else sample(calls)
        strikes = {str(plan): Disturbance(once(plan)) for plan in plans}
        if is_full:
            strikes = {EVERY_CALL: Disturbance(killed_at_every_call), **strikes}
        runs = await campaign.run_all({**disturbances(is_full=is_full), **strikes})
        results = Results({UNDISTURBED: undisturbed, **runs}, Expected(undisturbed.end, ATTEMPTS))
        await campaign.delete_all(results.ended.values())
        campaign.close()
        return results
