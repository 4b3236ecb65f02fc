"""What a node's programs read: containerd, kubelet, kube-proxy, CoreDNS, the network of pods."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

Object = dict[str, Any]

ADDRESS: Final = "10.76.0.1"
"""The node's; API server, kubelet and DNS listen on it."""

PODS: Final = "10.77.0.0/16"
SERVICES: Final = "10.0.0.0/24"
DOMAIN: Final = "cluster.local"
PAUSE: Final = "rlhf.dev/pause:tests"
PLUGINS: Final = Path("/usr/lib/cni")
LEASE_SECONDS: Final = 8
"""A kubelet renews its Lease four times in that; the tests' control plane waits 10 s for one."""


@dataclass(frozen=True)
class NodeFiles:
    """`directory` is short: the name of a socket has no more than 107 bytes."""

    directory: Path
    kubeconfig: Path

    @property
    def socket(self) -> Path:
        return self.directory / "containerd.sock"

    @property
    def containerd(self) -> Path:
        return self.directory / "containerd.toml"

    @property
    def kubelet(self) -> Path:
        return self.directory / "kubelet.json"

    @property
    def proxy(self) -> Path:
        return self.directory / "kube-proxy.json"

    @property
    def dns(self) -> Path:
        return self.directory / "Corefile"

    @property
    def _network(self) -> Path:
        return self.directory / "cni" / "10-pods.conflist"

    @property
    def _resolver(self) -> Path:
        """Of the node: it knows no other names."""
        return self.directory / "resolv.conf"

    def write(self) -> None:
        self._network.parent.mkdir(exist_ok=True)
        self._network.write_text(json.dumps(self._pods_network()))
        self._resolver.write_text("")
        self.containerd.write_text(self._containerd_settings())
        self.kubelet.write_text(json.dumps(self._kubelet_settings()))
        self.proxy.write_text(json.dumps(self._proxy_settings()))
        self.dns.write_text(
            f".:53 {{\n  bind {ADDRESS}\n  errors\n"
            f"  kubernetes {DOMAIN} {{\n    kubeconfig {self.kubeconfig}\n    ttl 0\n  }}\n}}\n"
        )

    def _containerd_settings(self) -> str:
        return f"""
version = 2
root = "{self.directory}/containerd"
state = "{self.directory}/containerd-state"
[grpc]
address = "{self.socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{PLUGINS}"
conf_dir = "{self._network.parent}"
"""

    def _pods_network(self) -> Object:
        """Each pod is routed to, so that what it sends to a Service passes kube-proxy's rules."""
        addresses = {
            "type": "host-local",
            "ranges": [[{"subnet": PODS}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(self.directory / "addresses"),
        }
        routed = {"type": "ptp", "ipMasq": False, "ipam": addresses}
        return {"cniVersion": "0.4.0", "name": "pods", "plugins": [routed]}

    def _kubelet_settings(self) -> Object:
        """What a machine with cgroups of version 1, and without systemd, can have."""
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": ADDRESS,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "failCgroupV1": False,
            "failSwapOn": False,
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "localStorageCapacityIsolation": False,
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "clusterDNS": [ADDRESS],
            "clusterDomain": DOMAIN,
            "resolvConf": str(self._resolver),
            "podLogsDir": str(self.directory / "logs"),
            "volumePluginDir": str(self.directory / "volume-plugins"),
            "nodeLeaseDurationSeconds": LEASE_SECONDS,
            # The disk is the machine's: what else fills it is no reason to end a pod.
            "evictionHard": {"memory.available": "100Mi"},
            "imageGCHighThresholdPercent": 100,
        }

    def _proxy_settings(self) -> Object:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clientConnection": {"kubeconfig": str(self.kubeconfig)},
            "clusterCIDR": PODS,
            # Of the whole machine, not of this network.
            "conntrack": {"maxPerCore": 0, "min": 0},
        }
