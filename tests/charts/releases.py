"""A release of the chart on the control plane, from the first installation to the last removal."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from chart import CHART, NAMESPACE, RELEASE, Helm
from cluster.control_plane import ControlPlane
from cluster.request_log import Request
from fresh_cluster import CRDS, NAME, nothing_installed
from played import PlayedDeployment

CRD_FILE = "files/rlhf.dev_rlhfjobs.yaml"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


class Right(NamedTuple):
    """One verb on one resource; `name`: of one object alone."""

    verb: str
    group: str
    resource: str
    name: str = ""


class Release:
    """The chart in a namespace for restricted pods, where nobody has installed the resource yet."""

    def __init__(self, plane: ControlPlane, helm: Helm, directory: Path) -> None:
        self.plane, self._helm, self._directory = plane, helm, directory
        self._resource = nothing_installed(plane.client)
        self._asked_before = len(plane.requests_of(RELEASE, NAMESPACE))

    def __enter__(self) -> Release:
        self._resource.__enter__()
        space = {"name": NAMESPACE, "labels": RESTRICTED}
        self.plane.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": space})
        return self

    def __exit__(self, *_: object) -> None:
        client = self.plane.client
        self.helm("uninstall", "--wait", "--ignore-not-found")
        client.delete("v1/namespaces", NAMESPACE)
        client.delete_all("v1/pods", NAMESPACE, grace=0)
        client.wait_for("v1/namespaces", NAMESPACE, lambda one: one is None)
        self._resource.__exit__(None, None, None)

    def helm(self, verb: str, *words: str | Path, values: dict[str, Any] | None = None) -> str:
        return self._helm.run(
            *verb.split(), RELEASE, *words, "--namespace", NAMESPACE, values=values
        )

    def operator(self) -> PlayedDeployment:
        return PlayedDeployment(self.plane, RELEASE, NAMESPACE, self._directory / "operator.log")

    def next_version(self, version: str) -> Path:
        """The chart as it is released next, with a column more in the resource."""
        folder = self._directory / version
        shutil.copytree(CHART, folder)
        meta = yaml.safe_load((folder / "Chart.yaml").read_text())
        meta |= {"version": version, "appVersion": version}
        (folder / "Chart.yaml").write_text(yaml.safe_dump(meta))
        columns = "    additionalPrinterColumns:\n"
        more = "    - {name: Uid, type: string, jsonPath: .metadata.uid}\n"
        crd = (folder / CRD_FILE).read_text()
        assert crd.count(columns) == 1
        (folder / CRD_FILE).write_text(crd.replace(columns, columns + more))
        return folder

    @property
    def columns(self) -> set[str]:
        """Of the resource, as the API server has it."""
        (version,) = self.plane.client.get(CRDS, NAME)["spec"]["versions"]
        return {column["name"] for column in version["additionalPrinterColumns"]}

    @property
    def requests(self) -> list[Request]:
        """All that its account has asked for."""
        return self.plane.requests_of(RELEASE, NAMESPACE)[self._asked_before :]

    def may(self, *namespaces: str) -> set[Right]:
        """What its account may do there, and accounts that were given nothing may not."""
        return {
            right
            for namespace in namespaces
            for right in self._listed(RELEASE, namespace) - self._listed("default", namespace)
        }

    def _listed(self, account: str, namespace: str) -> set[Right]:
        """As `kubectl auth can-i --list` prints it."""
        who = f"--as=system:serviceaccount:{NAMESPACE}:{account}"
        text = self.plane.kubectl("auth", "can-i", "--list", "--no-headers", who, "-n", namespace)
        row = re.compile(r"(\S+) +\[] +\[(.*?)] +\[(.*?)]")
        found = [row.fullmatch(line.strip()) for line in text.splitlines()]
        assert sum(match is not None for match in found) > 2
        return {
            Right(verb, group, "/".join([resource, *sub]), name)
            for match in found
            if match
            for plural, *sub in [match[1].split("/")]
            for resource, _, group in [plural.partition(".")]
            for name in match[2].split() or [""]
            for verb in match[3].split()
        }
