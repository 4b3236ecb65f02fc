"""A control plane on the loopback interface: etcd, API server, controller manager, scheduler."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import urllib3
from kubernetes.client import ApiException

from cluster.client import PATIENCE, Client
from cluster.layout import LOOPBACK, Layout
from cluster.programs import Group, Program, ProgramError, free_ports, listens
from cluster.request_log import Request, read_requests

PROVISIONED: Final = Path("/tmp/hostpath_pv")
"""Where the controller manager makes the folders of volumes; no flag moves it."""

TOKEN_SECONDS: Final = 3600
TOO_BUSY: Final = "start-service-ip-repair-controllers"
"""What an API server says that gives up as it could not look at the ports of all Services within a
minute. It tries only once: on a machine with fifteen processes for two cores, TLS takes longer."""
BUMP: Final = 500
"""Revisions: more than a test makes."""
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
    """Runs while it is entered as a context; its files are in `directory`, its logs stay there.

    `programs` are etcd, kube-apiserver, kube-controller-manager and kube-scheduler by name; each
    can be stopped and started again. `client` and `kubeconfig` are the administrator's. The API
    server listens on `address`.
    """

    def __init__(
        self,
        binaries: Path,
        directory: Path,
        *,
        gang_scheduling: bool = True,
        address: str = LOOPBACK,
    ) -> None:
        self.binaries = binaries
        self.directory = directory
        self._layout = Layout(directory, free_ports(3), gang_scheduling, address)

    def __enter__(self) -> Self:
        self._write_files()
        self._group = Group()
        self.programs = {
            name: self._program(name, [f"--{flag}={value}" for flag, value in flags.items()])
            for name, flags in self._layout.flags().items()
        }
        try:
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
        self.resume()
        volumes = self._volume_folders()
        for program in reversed(self.programs.values()):
            program.stop(grace=0)
        self._group.close()
        for folder in [*volumes, self._layout.etcd_data]:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def server(self) -> str:
        return self._layout.server

    @property
    def kubeconfig(self) -> Path:
        return self._layout.kubeconfig

    @property
    def group(self) -> int:
        """The process group of all its programs."""
        return self._group.id

    def start(self, name: str) -> None:
        """Starts a program; etcd and API server can be used when this returns.

        After an API server that was away the controllers begin anew: their watches would be tried
        again only after up to a minute (client-go doubles its waits to 30 s, with jitter on top).
        """
        program = self.programs[name]
        program.start()
        if name == "etcd":
            program.wait_until(lambda: listens(self._layout.ports[0]), PATIENCE)
        if name == "kube-apiserver":
            self._wait_for_the_server(program)
            for watcher in ("kube-controller-manager", "kube-scheduler"):
                if self.programs[watcher].pid:
                    self.stop(watcher, grace=0)
                    self.start(watcher)

    def _wait_for_the_server(self, program: Program) -> None:
        """A kubelet, too, starts one again that has ended by itself."""
        try:
            program.wait_until(self._is_ready, PATIENCE)
        except ProgramError as error:
            if TOO_BUSY not in str(error):
                raise
            program.start()
            program.wait_until(self._is_ready, PATIENCE)

    def stop(self, name: str, *, grace: float = 10) -> None:
        """Ends a program: SIGTERM, and SIGKILL after the grace period (0: at once)."""
        self.programs[name].stop(grace=grace)

    def freeze(self, name: str) -> None:
        """A program stands still, with all its connections, until `thaw`."""
        self._send(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """It goes on."""
        self._send(name, signal.SIGCONT)

    def back_up(self, folder: Path) -> None:
        """Keeps etcd's state as it is now in a folder that is not there yet."""
        self.freeze("etcd")
        try:
            shutil.copytree(self._layout.etcd_data, folder)
        finally:
            self.thaw("etcd")

    def restore(self, folder: Path) -> None:
        """Everything is as it was when it was backed up, but for etcd's newest revision, which is
        ahead of all that was: as `etcdutl snapshot restore --bump-revision` leaves it.

        https://etcd.io/docs/v3.6/op-guide/recovery
        """
        for name in ("kube-apiserver", "etcd"):
            self.stop(name, grace=0)
        shutil.rmtree(self._layout.etcd_data)
        shutil.copytree(folder, self._layout.etcd_data)
        self.start("etcd")
        for _ in range(BUMP):
            self._put_nothing()
        self.start("kube-apiserver")

    def _put_nothing(self) -> None:
        """One revision of etcd's more."""
        body = json.dumps({"key": "Ym90dG9tCg==", "value": ""}).encode()
        url = f"http://{LOOPBACK}:{self._layout.ports[0]}/v3/kv/put"
        urllib.request.urlopen(url, body, timeout=PATIENCE).close()

    def pause(self) -> None:
        """Stands still until `resume`: at rest it takes 4 % of a core, mostly by asking itself."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Goes on after `pause`; does nothing to one that runs."""
        self._signal(signal.SIGCONT)

    def check(self) -> None:
        """Raises ProgramError, with the end of its log, where a program has ended by itself."""
        for program in self.programs.values():
            program.check()

    def kubectl(self, *arguments: str, input: str | None = None, check: bool = True) -> str:
        """What kubectl prints, as the administrator; with its errors where it fails.

        Raises RuntimeError with that, unless a failure is asked for with `check=False`.
        """
        program = str(self.binaries / "kubectl")
        done = subprocess.run(
            [program, "--kubeconfig", str(self.kubeconfig), *arguments],
            input=input,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if not done.returncode:
            return done.stdout
        said = done.stdout + done.stderr
        if check:
            raise RuntimeError(f"kubectl {' '.join(arguments)} failed ({done.returncode}):\n{said}")
        return said

    def kubeconfig_for(self, service_account: str, namespace: str) -> Path:
        """A kubeconfig with a real token of a service account that exists; valid for an hour."""
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": TOKEN_SECONDS},
        }
        made = self.client.post("v1/serviceaccounts", service_account, "token", request, namespace)
        path = self.directory / f"{namespace}.{service_account}.kubeconfig"
        _write_private(path, json.dumps(self._layout.kubeconfig_with(made["status"]["token"])))
        return path

    def account_with(self, name: str, namespace: str, verbs: str, resources: str) -> Path:
        """The kubeconfig of a new service account that has these rights in its namespace."""
        self.kubectl("create", "serviceaccount", name, "-n", namespace)
        rules = [f"--verb={verbs}", f"--resource={resources}"]
        self.kubectl("create", "role", name, *rules, "-n", namespace)
        subject = f"--serviceaccount={namespace}:{name}"
        self.kubectl("create", "rolebinding", name, f"--role={name}", subject, "-n", namespace)
        return self.kubeconfig_for(name, namespace)

    def requests_of(self, service_account: str, namespace: str) -> list[Request]:
        """All that an account has asked the API server for so far."""
        return read_requests(self._layout.audit_log, service_account, namespace)

    def client_for(self, service_account: str, namespace: str) -> Client:
        return Client(self.kubeconfig_for(service_account, namespace))

    def _signal(self, number: signal.Signals) -> None:
        for name in self.programs:
            self._send(name, number)

    def _send(self, name: str, number: signal.Signals) -> None:
        if pid := self.programs[name].pid:
            os.kill(pid, number)

    def _program(self, name: str, flags: list[str]) -> Program:
        command = [str(self.binaries / name), *flags]
        return Program(self._group, self.directory / f"{name}.log", command)

    def _write_files(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        token = secrets.token_hex(16)
        _write_private(self._layout.tokens, f'{token},admin,admin,"system:masters"\n')
        _write_private(self.kubeconfig, json.dumps(self._layout.kubeconfig_with(token)))
        self._layout.scheduler_file.write_text(json.dumps(self._layout.scheduler_configuration()))
        self._layout.audit_policy.write_text(json.dumps(self._layout.auditing()))

    def _is_ready(self) -> bool:
        """Whether the API server serves, with all that it makes at its first start."""
        if not self._layout.certificate.exists():
            return False
        trust = ssl.create_default_context(cafile=str(self._layout.certificate))
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
        paths = [
            Path(one["spec"]["hostPath"]["path"]) for one in volumes if "hostPath" in one["spec"]
        ]
        return [path for path in paths if path.resolve().parent == PROVISIONED]


def _write_private(path: Path, content: str) -> None:
    path.touch(mode=0o600)
    path.write_text(content)
