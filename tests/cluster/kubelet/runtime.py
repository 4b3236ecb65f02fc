"""What a kubelet asks of a container runtime."""

from __future__ import annotations

from typing import Any, Protocol

from cluster.kubelet.api import Api
from cluster.kubelet.status import Exit

Object = dict[str, Any]


class NotReady(Exception):
    """A container cannot be made yet; it waits with this reason, and is tried again."""

    def __init__(self, reason: str, message: str, *, is_event: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.is_event = is_event  # a missing volume is told by an event, not by the status


class Host(Protocol):
    """The kubelet, as a runtime sees it."""

    api: Api

    def evict(self, pod: Object) -> None:
        """As the eviction manager does."""

    def lose_node(self, node: str) -> None:
        """The node's kubelet falls silent."""


class Container(Protocol):
    """One pod's containers, which start and end together."""

    started_at: float  # unix seconds

    async def wait(self) -> Exit:
        """How it ended, once it has."""

    def stop(self, grace: float) -> None:
        """SIGTERM; SIGKILL after so many seconds. A second call can only shorten them."""

    def kill(self, reason: str = "", rank: int | None = None) -> None:
        """SIGKILL from outside, to one of its ranks or to all; the reason is the kernel's."""

    def log(self) -> str:
        """What it has written so far."""

    def close(self) -> None:
        """Ends it without a trace: the kubelet itself ends."""


class Runtime(Protocol):
    """Makes containers."""

    async def create(self, pod: Object, host: Host) -> Container:
        """A container that runs. Raises NotReady."""
