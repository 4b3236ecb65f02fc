"""Where a control plane's files and ports are, and the flags of its programs that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

GANG_SCHEDULING: Final = ("GenericWorkload", "GangScheduling")
"""Feature gates of Kubernetes' own gang scheduler."""

NODE_GRACE: Final = 10
"""Seconds without a heartbeat until a node is not ready; a production cluster's default is 50."""

EVICTION_GRACE: Final = 2
"""Seconds that a pod tolerates such a node unless it says otherwise; the usual default is 300."""

LOOPBACK: Final = "127.0.0.1"

ISSUER: Final = "https://kubernetes.default.svc"


@dataclass(frozen=True)
class Layout:
    """`ports` are etcd's for clients and for peers, and the API server's, which alone listens on
    `address`: all else is loopback."""

    directory: Path
    ports: Sequence[int]
    gang_scheduling: bool
    address: str = LOOPBACK

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.ports[2]}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.directory / "admin.kubeconfig"

    @property
    def tokens(self) -> Path:
        return self.directory / "tokens.csv"

    @property
    def etcd_data(self) -> Path:
        return self.directory / "etcd"

    @property
    def audit_policy(self) -> Path:
        return self.directory / "audit-policy.json"

    @property
    def audit_log(self) -> Path:
        """A line of JSON for each request of a service account."""
        return self.directory / "audit.log"

    @property
    def scheduler_file(self) -> Path:
        return self.directory / "scheduler.json"

    @property
    def certificate(self) -> Path:
        """Self-signed, with its authority in the same file."""
        return self.directory / "certificates" / "apiserver.crt"

    @property
    def key(self) -> Path:
        """The API server's TLS key, made at its first start; signs service accounts' tokens too."""
        return self.certificate.with_suffix(".key")

    def flags(self) -> dict[str, Mapping[str, str]]:
        """Each program's, in the order in which they can be started."""
        return {
            "etcd": self._etcd(),
            "kube-apiserver": self._api_server(),
            "kube-controller-manager": self._controller_manager(),
            "kube-scheduler": self._scheduler(),
        }

    def scheduler_configuration(self) -> dict[str, Any]:
        """As a scheduler's defaults, but for backoffs that do not keep a test waiting."""
        return {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {"kubeconfig": str(self.kubeconfig), "qps": 200, "burst": 400},
            "leaderElection": {"leaderElect": False},
            "podInitialBackoffSeconds": 1,
            "podMaxBackoffSeconds": 2,
        }

    def auditing(self) -> dict[str, Any]:
        """Who has asked for what; of service accounts alone, as nothing else needs telling."""
        accounts = {"level": "Metadata", "userGroups": ["system:serviceaccounts"]}
        return {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [accounts, {"level": "None"}],
        }

    def kubeconfig_with(self, token: str) -> dict[str, Any]:
        cluster = {"server": self.server, "certificate-authority": str(self.certificate)}
        named = {"cluster": "tests", "user": "user"}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "tests", "context": named}],
            "current-context": "tests",
        }

    def _etcd(self) -> dict[str, str]:
        client, peer = (f"http://127.0.0.1:{port}" for port in self.ports[:2])
        return {
            "data-dir": str(self.etcd_data),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
            "unsafe-no-fsync": "true",
            "log-level": "warn",
        }

    def _api_server(self) -> dict[str, str]:
        return {
            "etcd-servers": f"http://127.0.0.1:{self.ports[0]}",
            "bind-address": self.address,
            "secure-port": str(self.ports[2]),
            # Nobody could reach an endpoint of the Service `kubernetes` on loopback: it is refused.
            "endpoint-reconciler-type": "none" if self.address == LOOPBACK else "lease",
            "cert-dir": str(self.certificate.parent),
            "token-auth-file": str(self.tokens),
            "authorization-mode": "RBAC",
            "audit-policy-file": str(self.audit_policy),
            "audit-log-path": str(self.audit_log),
            "service-account-issuer": ISSUER,
            "service-account-key-file": str(self.key),
            "service-account-signing-key-file": str(self.key),
            "service-cluster-ip-range": "10.0.0.0/24",
            "feature-gates": self._gates(*GANG_SCHEDULING),
            "runtime-config": f"scheduling.k8s.io/v1alpha2={_flag(self.gang_scheduling)}",
            "default-not-ready-toleration-seconds": str(EVICTION_GRACE),
            "default-unreachable-toleration-seconds": str(EVICTION_GRACE),
            "kubelet-preferred-address-types": "InternalIP",
            "profiling": "false",
        }

    def _controller_manager(self) -> dict[str, str]:
        return {
            "kubeconfig": str(self.kubeconfig),
            "service-account-private-key-file": str(self.key),
            "root-ca-file": str(self.certificate),
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
            "config": str(self.scheduler_file),
            "secure-port": "0",
            "feature-gates": self._gates(*GANG_SCHEDULING),
        }

    def _gates(self, *names: str) -> str:
        return ",".join(f"{name}={_flag(self.gang_scheduling)}" for name in names)


def _flag(value: bool) -> str:
    return str(value).lower()
