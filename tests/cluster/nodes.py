"""Nodes that are objects only: what a kubelet says of its machine, with nothing behind it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

import urllib3
from kubernetes.client import ApiException

from cluster.client import PATIENCE, Client, Object
from cluster.layout import NODE_GRACE

HEARTBEAT: Final = 2.0
"""Seconds between two renewals of a node's Lease."""

LEASES: Final = "kube-node-lease"
OUT_OF_SERVICE: Final = "node.kubernetes.io/out-of-service"
MACHINE: Final = {"cpu": "64", "memory": "512Gi", "ephemeral-storage": "1Ti", "pods": "110"}
"""What a node has unless it is told otherwise."""

CONTROL_PLANE: Final = {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}

Quantities = Mapping[str, str | int]
Taint = dict[str, str]


class FakeNodes:
    """Makes nodes and keeps them alive from one thread, while it is entered as a context.

    One that takes no pods is there from the start, as in a real cluster: where every node is lost,
    the node lifecycle controller blames the control plane and evicts nothing.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._nodes: dict[str, FakeNode] = {}
        self._count = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeats", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.add(name="control-plane", taints=[CONTROL_PLANE])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        for node in list(self._nodes.values()):
            self.remove(node)

    def add(
        self,
        devices: Quantities | None = None,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        taints: list[Taint] | None = None,
        **machine: str | int,
    ) -> FakeNode:
        """A node that pods can be bound to, with a MACHINE's resources, and these devices.

        `add({"nvidia.com/gpu": 8}, labels={"topology.kubernetes.io/zone": "a"}, cpu=16)`
        """
        self._count += 1
        node = FakeNode(self._client, name or f"node-{self._count}")
        node.register({**MACHINE, **machine, **(devices or {})}, labels or {}, taints or [])
        self._nodes[node.name] = node
        node.wait_until_schedulable()
        return node

    def remove(self, node: FakeNode) -> None:
        self._nodes.pop(node.name, None)
        self._client.delete("v1/nodes", node.name)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            for node in list(self._nodes.values()):
                # A heartbeat that fails is a heartbeat missed, as for a kubelet.
                with contextlib.suppress(ApiException, urllib3.exceptions.HTTPError):
                    node.beat()


class FakeNode:
    """One node; all that changes it is what a kubelet, an administrator or a cloud does to one."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self._client = client
        self._alive = True
        self._renewed = time.monotonic()
        self._late = float("-inf")

    def register(
        self, resources: Quantities, labels: Mapping[str, str], taints: list[Taint]
    ) -> None:
        """Creates the node and reports it ready, as a kubelet does at its start."""
        own = {"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux"}
        node = self._client.create(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": self.name, "labels": own | dict(labels)},
                "spec": {"taints": taints},
            }
        )
        self._make_lease(node)
        self.resize(resources)
        self._report_ready()

    def wait_until_schedulable(self) -> None:
        """Until the node lifecycle controller has taken away the taint of a node not ready."""
        self._client.wait_for("v1/nodes", self.name, lambda node: not _is_tainted(node))

    def beat(self) -> None:
        """Renews the Lease: the node lives. Where that comes late, it reports itself ready for a
        while, as a kubelet does that finds its node given up."""
        if self._alive:
            renewed = {"spec": {"renewTime": _micro_time()}}
            self._client.patch("coordination.k8s.io/v1/leases", self.name, renewed, LEASES)
            before, self._renewed = self._renewed, time.monotonic()
            if self._renewed - before > NODE_GRACE / 2:
                self._late = self._renewed
            if self._renewed - self._late < NODE_GRACE:
                self._report_ready()

    def lose(self) -> None:
        """The machine is gone or cut off: nothing is heard of it any more."""
        self._alive = False

    def recover(self) -> None:
        """It is heard of again, ready."""
        self._alive = True
        self.beat()
        self._report_ready()

    @property
    def is_lost(self) -> bool:
        return not self._alive

    def resize(self, resources: Quantities) -> None:
        """Changes what the node has of these resources; the others stay."""
        quantities = {name: str(amount) for name, amount in resources.items()}
        self._report({"capacity": quantities, "allocatable": quantities})

    def taint(self, key: str, value: str = "", effect: str = "NoSchedule") -> None:
        own = {"key": key, "value": value, "effect": effect}
        self._change_taints(lambda taints: [*(one for one in taints if one["key"] != key), own])

    def untaint(self, key: str) -> None:
        self._change_taints(lambda taints: [one for one in taints if one["key"] != key])

    def take_out_of_service(self) -> None:
        """What an administrator says of a lost machine that will not come back with its pods.

        The control plane then deletes them without asking the kubelet, within 20 s.
        """
        self.taint(OUT_OF_SERVICE, "nodeshutdown", "NoExecute")

    def cordon(self, unschedulable: bool = True) -> None:
        self._client.patch("v1/nodes", self.name, {"spec": {"unschedulable": unschedulable}})

    def drain(self, timeout: float = PATIENCE) -> None:
        """Cordons the node and evicts its pods, as kubectl drain does: budgets are respected."""
        self.cordon()
        deadline = time.monotonic() + timeout
        for pod in self._client.list("v1/pods", fields=f"spec.nodeName={self.name}"):
            self._evict(pod["metadata"]["name"], pod["metadata"]["namespace"], deadline)

    def _evict(self, name: str, namespace: str, deadline: float) -> None:
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
        }
        while True:
            try:
                self._client.post("v1/pods", name, "eviction", eviction, namespace)
                return
            except ApiException as error:
                if error.status == 404:
                    return
                if error.status != 429 or time.monotonic() > deadline:  # 429: a budget says not now
                    raise
            time.sleep(0.2)

    def _make_lease(self, node: Object) -> None:
        """As a kubelet's: it goes with its node."""
        owner = {
            "apiVersion": "v1",
            "kind": "Node",
            "name": self.name,
            "uid": node["metadata"]["uid"],
        }
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.name, "namespace": LEASES, "ownerReferences": [owner]},
            "spec": {
                "holderIdentity": self.name,
                "leaseDurationSeconds": 40,
                "renewTime": _micro_time(),
            },
        }
        self._client.apply(lease, manager="kubelet")

    def _report_ready(self) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "kubelet is posting ready status",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        addresses = [
            {"type": "InternalIP", "address": "127.0.0.1"},
            {"type": "Hostname", "address": self.name},
        ]
        self._report({"conditions": [ready], "addresses": addresses})

    def _report(self, status: Object) -> None:
        self._client.patch(
            "v1/nodes", self.name, {"status": status}, subresource="status", kind="strategic"
        )

    def _change_taints(self, change: Callable[[list[Taint]], list[Taint]]) -> None:
        """Reads, changes and writes; again where the node has changed meanwhile."""
        while True:
            node = self._client.get("v1/nodes", self.name)
            taints = change(node["spec"].get("taints", []))
            version = node["metadata"]["resourceVersion"]
            body: dict[str, Any] = {
                "metadata": {"resourceVersion": version},
                "spec": {"taints": taints},
            }
            try:
                self._client.patch("v1/nodes", self.name, body)
                return
            except ApiException as error:
                if error.status != 409:
                    raise


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _is_tainted(node: Object | None) -> bool:
    taints = (node or {}).get("spec", {}).get("taints", [])
    return any(one["key"] == "node.kubernetes.io/not-ready" for one in taints)
