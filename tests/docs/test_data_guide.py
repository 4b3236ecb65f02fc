"""The guide to data: what it has a reader apply is taken, also where pods are restricted."""

from __future__ import annotations

import yaml
from cluster.control_plane import ControlPlane
from guide_commands import REPOSITORY, Page

COMMANDS = Page("docs/guides/data.md").section("Rows on a claim")
FILE = "examples/claims/datasets.yaml"


def test_the_claim_and_the_pod_that_fills_it_are_taken_by_a_restricted_namespace(
    control_plane: ControlPlane, namespace: str
) -> None:
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    control_plane.client.patch("v1/namespaces", namespace, {"metadata": {"labels": label}})
    claim, pod = yaml.safe_load_all((REPOSITORY / FILE).read_text("utf-8"))
    for item in (claim, pod):
        control_plane.client.create(item, namespace)
    (volume,) = pod["spec"]["volumes"]
    (mount,) = pod["spec"]["containers"][0]["volumeMounts"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert FILE in COMMANDS
    assert f"{pod['metadata']['name']}:{mount['mountPath']}/sft.jsonl" in COMMANDS
