"""The ways in which a manifest gets from Git to a cluster."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from cluster.binaries import find_program
from cluster.control_plane import ControlPlane

Object = dict[str, Any]


class Deployer:
    """Somebody who deploys to one namespace, from files in a folder."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path) -> None:
        self.plane, self.namespace, self._folder = plane, namespace, folder

    def client_side(self, manifest: Object) -> None:
        """`kubectl apply`: three ways, with the last manifest in an annotation."""
        self._kubectl("apply", "-f", "-", manifest=manifest)

    def server_side(self, manifest: Object, manager: str = "gitops") -> None:
        """`kubectl apply --server-side`, as Flux and Argo CD do; a conflict fails it."""
        flags = ("--server-side", f"--field-manager={manager}")
        self._kubectl("apply", *flags, "-f", "-", manifest=manifest)

    def helm(self, manifest: Object) -> None:
        """A chart of this one template, installed or upgraded."""
        name = manifest["metadata"]["name"]
        chart = self._folder / f"chart-{name}"
        (chart / "templates").mkdir(parents=True, exist_ok=True)
        meta = {"apiVersion": "v2", "name": name, "version": "1.0.0"}
        (chart / "Chart.yaml").write_text(yaml.safe_dump(meta))
        (chart / "templates" / "job.yaml").write_text(yaml.safe_dump(manifest))
        done = subprocess.run(
            [find_program("helm"), "upgrade", "--install", name, chart, "-n", self.namespace],
            env=os.environ | {"KUBECONFIG": str(self.plane.kubeconfig)} | self._homes(),
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def difference(self, manifest: Object, *flags: str) -> str:
        """What `kubectl diff` shows; empty where there is none."""
        return self._kubectl("diff", *flags, "-f", "-", manifest=manifest)

    def _kubectl(self, *words: str, manifest: Object) -> str:
        text = yaml.safe_dump(manifest)
        return self.plane.kubectl("--namespace", self.namespace, *words, input=text)

    def _homes(self) -> Mapping[str, str]:
        kinds = ("CACHE", "CONFIG", "DATA")
        return {f"HELM_{kind}_HOME": str(self._folder / kind.lower()) for kind in kinds}


Way = Callable[[Deployer, Object], None]
WAYS: Final[dict[str, Way]] = {
    "client-side": Deployer.client_side,
    "server-side": Deployer.server_side,
    "helm": Deployer.helm,
}
