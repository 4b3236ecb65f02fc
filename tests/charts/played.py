"""A release on the control plane, whose nodes cannot pull images: the Deployment's container is
started as a process, with the arguments and variables that the Deployment has there and with the
token of its service account.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from chart import Object
from cluster.client import PATIENCE
from cluster.control_plane import ControlPlane
from cluster.programs import free_ports
from reports import OPENER

FIELDS: dict[str, Callable[[Object], str]] = {
    "metadata.name": lambda meta: f"{meta['name']}-0",
    "metadata.namespace": lambda meta: str(meta["namespace"]),
    "status.podIP": lambda meta: "127.0.0.1",
}
"""What a kubelet would fill in, from the Deployment's metadata."""


class PlayedDeployment:
    """One replica. Only its ports are others, as tests run side by side."""

    def __init__(self, plane: ControlPlane, name: str, namespace: str, log: Path) -> None:
        self.object = plane.client.get("apps/v1/deployments", name, namespace)
        pod = self.object["spec"]["template"]["spec"]
        (self._container,) = pod["containers"]
        assert pod["automountServiceAccountToken"]
        self.health_port, self.progress_port = free_ports(2)
        self._kubeconfig = plane.kubeconfig_for(pod["serviceAccountName"], namespace)
        self._log = log

    def __enter__(self) -> PlayedDeployment:
        python, *words = [*self._container["command"], *self._container["args"]]
        assert python == "python"
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, *words], env=self.environment, stdout=log, stderr=log
            )
        return self

    def __exit__(self, *_: object) -> None:
        """As a kubelet ends it."""
        self._process.send_signal(signal.SIGTERM)
        try:
            assert self._process.wait(PATIENCE) == 0, self._log.read_text()[-4000:]
        finally:
            self._process.kill()
            print(f"--- {self._log.name}\n{self._log.read_text()[-6000:]}")

    @property
    def environment(self) -> dict[str, str]:
        given = {item["name"]: self._value(item) for item in self._container["env"]}
        own = {
            "KUBECONFIG": str(self._kubeconfig),
            "RLHF_HEALTH_PORT": str(self.health_port),
            "RLHF_PROGRESS_PORT": str(self.progress_port),
        }
        return {"PATH": os.environ["PATH"]} | own | given

    @property
    def is_ready(self) -> bool:
        """As its readiness probe finds it."""
        path = self._container["readinessProbe"]["httpGet"]["path"]
        try:
            with OPENER.open(f"http://127.0.0.1:{self.health_port}{path}", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _value(self, item: Object) -> str:
        if "value" in item:
            return str(item["value"])
        return FIELDS[item["valueFrom"]["fieldRef"]["fieldPath"]](self.object["metadata"])
