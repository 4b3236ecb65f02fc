"""A control plane on the loopback interface: etcd, API server, controller manager, scheduler."""

from __future__ import annotations

import json
import secrets
import shutil
import ssl
import subprocess
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import urllib3
from kubernetes.client import ApiException

from cluster.client import Client
from cluster.programs import Group, Program, free_ports, listens

GANG_SCHEDULING: Final = ("GenericWorkload", "GangScheduling")
"""Feature gates of Kubernetes' own gang scheduler."""

NODE_GRACE: Final = 10
"""Seconds without a heartbeat until a node is not ready; a production cluster's default is 50."""

EVICTION_GRACE: Final = 2
"""Seconds that a pod tolerates such a node unless it says otherwise; the usual default is 300."""

READY_TIMEOUT: Final = 60.0
ISSUER: Final = "https://kubernetes.default.svc"
STORAGE_CLASS: Final[dict[str, Any]] = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {
        "name": "standard",
        "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
    },
    "provisioner": "kubernetes.io/host-path",
}


class ControlPlane:
    """Runs while it is entered as a context; its files and logs are in `directory`.

    `programs` are etcd, kube-apiserver, kube-controller-manager and kube-scheduler by name; each
    can be stopped and started again. `client` is the administrator's.
    """

    def __init__(self, binaries: Path, directory: Path, *, gang_scheduling: bool = True) -> None:
        self.directory = directory
        self.kubeconfig = directory / "admin.kubeconfig"
        self.binaries = binaries
        self._with_gangs = "true" if gang_scheduling else "false"
        self._etcd_port, self._peer_port, self._port = free_ports(3)
        self.server = f"https://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._write_files()
        self._group = Group()
        try:
            self.programs = {
                "etcd": self._program("etcd", self._etcd()),
                "kube-apiserver": self._program("kube-apiserver", self._api_server()),
                "kube-controller-manager": self._program(
                    "kube-controller-manager", self._controller_manager()
                ),
                "kube-scheduler": self._program("kube-scheduler", self._scheduler()),
            }
            for name in self.programs:
                self.start(name)
            self.client = Client(self.kubeconfig)
            self.client.apply(STORAGE_CLASS)
        except BaseException:
            self._group.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        volumes = self._volume_folders()
        for program in reversed(self.programs.values()):
            program.stop(grace=0)
        self._group.close()
        for folder in volumes:
            shutil.rmtree(folder, ignore_errors=True)

    def start(self, name: str) -> None:
        """Starts a program and waits until it can be used."""
        program = self.programs[name]
        program.start()
        if name == "etcd":
            program.wait_until(lambda: listens(self._etcd_port), READY_TIMEOUT)
        if name == "kube-apiserver":
            program.wait_until(self._is_ready, READY_TIMEOUT)

    def stop(self, name: str, *, grace: float = 10) -> None:
        """Ends a program: SIGTERM, and SIGKILL after the grace period (0: at once)."""
        self.programs[name].stop(grace=grace)

    def check(self) -> None:
        """Raises ProgramError, with the end of its log, where a program has ended by itself."""
        for program in self.programs.values():
            program.check()

    def kubectl(self, *arguments: str, input: str | None = None, check: bool = True) -> str:
        """What kubectl prints, as the administrator. Raises RuntimeError with it where it fails."""
        command = [
            str(self.binaries / "kubectl"),
            "--kubeconfig",
            str(self.kubeconfig),
            *arguments,
        ]
        done = subprocess.run(
            command,
            input=input,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def kubeconfig_for(self, service_account: str, namespace: str) -> Path:
        """A kubeconfig with a real token of a service account that exists; valid for an hour."""
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600},
        }
        made = self.client.post("v1/serviceaccounts", service_account, "token", request, namespace)
        path = self.directory / f"{namespace}.{service_account}.kubeconfig"
        self._write_kubeconfig(path, made["status"]["token"])
        return path

    def client_for(self, service_account: str, namespace: str) -> Client:
        return Client(self.kubeconfig_for(service_account, namespace))

    def _program(self, name: str, flags: Mapping[str, str]) -> Program:
        command = [
            str(self.binaries / name),
            *(f"--{flag}={value}" for flag, value in flags.items()),
        ]
        return Program(self._group, self.directory / f"{name}.log", command)

    def _gates(self, *names: str) -> str:
        return ",".join(f"{name}={self._with_gangs}" for name in names)

    def _etcd(self) -> dict[str, str]:
        client, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd_port, self._peer_port))
        return {
            "data-dir": str(self.directory / "etcd"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
            "unsafe-no-fsync": "true",
            "log-level": "warn",
        }

    def _api_server(self) -> dict[str, str]:
        """Its TLS key, made at the first start, signs the service accounts' tokens as well."""
        return {
            "etcd-servers": f"http://127.0.0.1:{self._etcd_port}",
            "bind-address": "127.0.0.1",
            "secure-port": str(self._port),
            "endpoint-reconciler-type": "none",
            "cert-dir": str(self._certificates),
            "token-auth-file": str(self.directory / "tokens.csv"),
            "authorization-mode": "RBAC",
            "service-account-issuer": ISSUER,
            "service-account-key-file": str(self._key),
            "service-account-signing-key-file": str(self._key),
            "service-cluster-ip-range": "10.0.0.0/24",
            "feature-gates": self._gates(*GANG_SCHEDULING),
            "runtime-config": f"scheduling.k8s.io/v1alpha2={self._with_gangs}",
            "default-not-ready-toleration-seconds": str(EVICTION_GRACE),
            "default-unreachable-toleration-seconds": str(EVICTION_GRACE),
            "profiling": "false",
        }

    def _controller_manager(self) -> dict[str, str]:
        return {
            "kubeconfig": str(self.kubeconfig),
            "service-account-private-key-file": str(self._key),
            "root-ca-file": str(self._certificate),
            "leader-elect": "false",
            "secure-port": "0",
            "enable-hostpath-provisioner": "true",
            "feature-gates": self._gates("GenericWorkload"),
            "node-monitor-period": "1s",
            "node-monitor-grace-period": f"{NODE_GRACE}s",
            "node-eviction-rate": "10",
            "secondary-node-eviction-rate": "10",
            "kube-api-qps": "200",
            "kube-api-burst": "400",
        }

    def _scheduler(self) -> dict[str, str]:
        return {
            "config": str(self.directory / "scheduler.json"),
            "secure-port": "0",
            "feature-gates": self._gates(*GANG_SCHEDULING),
        }

    @property
    def group(self) -> int:
        """The process group of all its programs."""
        return self._group.id

    @property
    def _certificates(self) -> Path:
        return self.directory / "certificates"

    @property
    def _certificate(self) -> Path:
        """Self-signed, with its authority in the same file."""
        return self._certificates / "apiserver.crt"

    @property
    def _key(self) -> Path:
        return self._certificates / "apiserver.key"

    def _write_files(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        token = secrets.token_hex(16)
        (self.directory / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
        self._write_kubeconfig(self.kubeconfig, token)
        scheduler = {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {"kubeconfig": str(self.kubeconfig), "qps": 200, "burst": 400},
            "leaderElection": {"leaderElect": False},
            "podInitialBackoffSeconds": 1,
            "podMaxBackoffSeconds": 2,
        }
        (self.directory / "scheduler.json").write_text(json.dumps(scheduler))

    def _write_kubeconfig(self, path: Path, token: str) -> None:
        cluster = {"server": self.server, "certificate-authority": str(self._certificate)}
        named = {"cluster": "tests", "user": "user"}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "tests", "context": named}],
            "current-context": "tests",
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps(content))

    def _is_ready(self) -> bool:
        """Whether the API server serves, with all that it makes at its first start."""
        if not self._certificate.exists():
            return False
        trust = ssl.create_default_context(cafile=str(self._certificate))
        try:
            with urllib.request.urlopen(
                f"{self.server}/readyz", context=trust, timeout=5
            ) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _volume_folders(self) -> list[Path]:
        """The folders under /tmp that the controller manager has made for volumes."""
        try:
            volumes = self.client.list("v1/persistentvolumes")
        except (ApiException, urllib3.exceptions.HTTPError):
            return []  # The test has left the API server stopped.
        return [
            Path(one["spec"]["hostPath"]["path"]) for one in volumes if "hostPath" in one["spec"]
        ]
