"""An operator in a namespace of the test's own, on the real control plane."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Scripted, succeed
from cluster.kubelet.script import Play
from cluster.nodes import FakeNode
from cluster_jobs import Jobs
from operator_process import OperatorProcess


@pytest.fixture
def jobs(installed: ControlPlane, namespace: str) -> Jobs:
    return Jobs(installed.client, namespace)


@pytest.fixture
def run_operator(
    installed: ControlPlane, namespace: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., OperatorProcess]]:
    """Starts replicas; they are killed at the end of the test."""
    started: list[OperatorProcess] = []

    def run(
        *flags: str, kubeconfig: Path | None = None, namespaces: Sequence[str] = (namespace,)
    ) -> OperatorProcess:
        log = tmp_path / f"operator-{len(started)}.log"
        kubeconfig = kubeconfig or installed.kubeconfig
        lease = ("--lease-namespace", namespace)
        process = OperatorProcess(kubeconfig, namespaces, log, *lease, *flags)
        process.start()
        started.append(process)
        return process

    yield run
    for process in started:
        process.end()
        print(f"--- {process.log_file.name}\n{process.log()[-8000:]}")


@pytest.fixture
def gpus(make_node: Callable[..., FakeNode]) -> list[FakeNode]:
    return [make_node({"nvidia.com/gpu": 8}) for _ in range(2)]


@pytest.fixture
def play(installed: ControlPlane, gpus: list[FakeNode]) -> Iterator[Callable[[Play], Kubelet]]:
    """Starts the kubelets of the nodes with a script for each pod."""
    started: list[Kubelet] = []

    def begin(script: Play = succeed) -> Kubelet:
        started.append(Kubelet(installed.kubeconfig, Scripted(script)).__enter__())
        return started[-1]

    yield begin
    for kubelet in started:
        kubelet.__exit__(None, None, None)
