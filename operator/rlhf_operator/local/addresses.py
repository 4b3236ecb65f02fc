"""What the DNS names and the port of a gang are on one machine."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple


class Addresses(NamedTuple):
    """Where the pods behind a headless Service are found; without one no name is known."""

    service: str = ""
    namespace: str = ""
    ports: Mapping[str, str] = {}

    @classmethod
    def of(cls, service: dict[str, Any] | None) -> Addresses:
        """A port of this machine for each of the Service's: two gangs at one time must not meet."""
        if service is None:
            return cls()
        ports = {str(item["port"]): _free_port() for item in service["spec"].get("ports", [])}
        return cls(service["metadata"]["name"], service["metadata"]["namespace"], ports)

    def local(self, word: str) -> str:
        """The loopback address for the name of a pod, this machine's port for the Service's."""
        return "127.0.0.1" if self._is_pod(word) else self.ports.get(word, word)

    def _is_pod(self, word: str) -> bool:
        if not self.service:
            return False
        short = rf"[a-z0-9-]+\.{re.escape(self.service)}"
        full = rf"{short}(\.{re.escape(self.namespace)}(\.svc(\.cluster\.local)?)?)?"
        return re.fullmatch(full, word) is not None


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
