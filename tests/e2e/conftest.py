"""A control plane whose pods train."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster.control_plane import ControlPlane
from cluster.nodes import FakeNodes
from training_cluster import TrainingCluster, a_training_cluster


@pytest.fixture(scope="module")
def cluster(
    installed: ControlPlane,
    fake_nodes: FakeNodes,
    module_namespace: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TrainingCluster]:
    directory = tmp_path_factory.mktemp("cluster")
    with a_training_cluster(installed, fake_nodes, module_namespace, directory) as running:
        yield running
