"""A control plane on which nobody has installed anything of ours yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from cluster.client import Client

CRDS = "apiextensions.k8s.io/v1/customresourcedefinitions"
NAME = "rlhfjobs.rlhf.dev"
LEASES = "coordination.k8s.io/v1/leases"
FILE = Path(__file__).parents[2] / "crds" / "rlhf.dev_rlhfjobs.yaml"


@contextmanager
def nothing_installed(client: Client) -> Iterator[None]:
    """For as long as it is entered; what follows finds the resource as the fixture `installed`
    left it. All jobs of the control plane go."""
    _remove(client)
    try:
        yield
    finally:
        _remove(client)
        client.define(yaml.safe_load(FILE.read_text()))


def _remove(client: Client) -> None:
    client.delete(CRDS, NAME)
    for plural in ("clusterroles", "clusterrolebindings"):
        for item in client.list(f"rbac.authorization.k8s.io/v1/{plural}"):
            if (name := item["metadata"]["name"]).startswith("rlhf-operator"):
                client.delete(f"rbac.authorization.k8s.io/v1/{plural}", name)
    for lease in client.list(LEASES):
        if lease["metadata"]["name"] == "rlhf-operator":
            client.delete(LEASES, "rlhf-operator", lease["metadata"]["namespace"])
    client.wait_for(CRDS, NAME, lambda crd: crd is None)
