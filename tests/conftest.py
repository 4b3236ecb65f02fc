"""A real control plane for every test that asks for it, started once a run."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml
from cluster.binaries import find_binaries, find_program
from cluster.control_plane import ControlPlane
from cluster.nodes import FakeNode, FakeNodes
from cluster.toolchain import NoBinaries

LONGEST = ("e2e", "faults", "charts")
"""Folders whose files run for minutes, with few tests in each."""

CRD = Path(__file__).parents[1] / "crds" / "rlhf.dev_rlhfjobs.yaml"
_numbers = itertools.count(1)
os.environ.setdefault("GOGC", "400")  # an API server of a few objects collects garbage all the time


def pytest_addoption(parser: pytest.Parser) -> None:
    """What takes too long for every run."""
    parser.addoption(
        "--faults",
        choices=("sample", "all"),
        default="sample",
        help="tests/faults: a fixed sample, or every fault at every call of the operator (15 min), "
        "and all that may happen to a job in each of its phases (10 min)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first: begun last, one worker would wait for the other at the end."""
    if config.getoption("--faults") != "all":
        left_out = [item for item in items if item.get_closest_marker("all_faults")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: item.path.parent.name not in LONGEST)


@pytest.fixture(scope="session")
def control_plane(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    """etcd, API server, controller manager and scheduler; built first where that was never done.

    Between files that need it, it stands still.
    """
    binaries = _built(request, find_binaries)
    with ControlPlane(binaries, tmp_path_factory.mktemp("control-plane")) as running:
        request.config.pluginmanager.register(_StandsStill(running, _files_with_it(request)))
        yield running


def _files_with_it(request: pytest.FixtureRequest) -> set[Path]:
    return {item.path for item in request.session.items if "control_plane" in _fixtures(item)}


def _fixtures(item: pytest.Item) -> Sequence[str]:
    names: Sequence[str] = getattr(item, "fixturenames", ())
    return names


class _StandsStill:
    """Pauses a control plane in files none of whose tests needs it."""

    def __init__(self, plane: ControlPlane, needed_in: set[Path]) -> None:
        self._plane, self._needed_in = plane, needed_in
        self._file: Path | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if item.path == self._file:
            return
        self._file = item.path
        if item.path in self._needed_in:
            self._plane.resume()
        else:
            self._plane.pause()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, nextitem: pytest.Item | None) -> None:
        if nextitem is None:  # what a whole session has made on it goes now
            self._plane.resume()


@pytest.fixture(scope="session")
def program(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """Another program of cluster.modules by its name; built first where that was never done."""
    return lambda name: _built(request, partial(find_program, name))


def _built(request: pytest.FixtureRequest, find: Callable[[], Path]) -> Path:
    """What is found, with the progress of a build shown and its failure told without a trace."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        try:
            return find()
        except NoBinaries as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None


@pytest.fixture(scope="session")
def installed(control_plane: ControlPlane) -> ControlPlane:
    """A control plane that serves RLHFJobs."""
    control_plane.client.define(yaml.safe_load(CRD.read_text()))
    return control_plane


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace of the test's own, ready for pods."""
    with a_namespace(control_plane) as name:
        yield name


@pytest.fixture(scope="module")
def module_namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace for a story that several tests tell."""
    with a_namespace(control_plane) as name:
        yield name


@contextmanager
def a_namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A new one; it goes at the end, with all that is in it."""
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
