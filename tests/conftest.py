"""A real control plane for every test that asks for it, started once a run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from cluster.binaries import find_binaries
from cluster.control_plane import ControlPlane
from cluster.nodes import FakeNode, FakeNodes
from cluster.toolchain import NoBinaries

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def control_plane(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    """etcd, API server, controller manager and scheduler; built first where that was never done."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        try:
            binaries = find_binaries()
        except NoBinaries as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None
    with ControlPlane(binaries, tmp_path_factory.mktemp("control-plane")) as running:
        yield running


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace of the test's own, ready for pods."""
    name = f"test-{next(_numbers)}"
    client = control_plane.client
    client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    client.wait_for("v1/serviceaccounts", "default", lambda account: account is not None, name)
    yield name
    control_plane.check()
    client.delete("v1/namespaces", name)
    client.delete_all("v1/pods", name, grace=0)  # No kubelet would end those that are bound.


@pytest.fixture(scope="session")
def fake_nodes(control_plane: ControlPlane) -> Iterator[FakeNodes]:
    with FakeNodes(control_plane.client) as nodes:
        yield nodes


@pytest.fixture
def make_node(fake_nodes: FakeNodes) -> Iterator[Callable[..., FakeNode]]:
    """FakeNodes.add; the nodes go with the test."""
    made: list[FakeNode] = []

    def make(*arguments: object, **options: object) -> FakeNode:
        made.append(fake_nodes.add(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for node in made:
        fake_nodes.remove(node)
