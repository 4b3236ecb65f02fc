"""What the DNS names and the port of a gang are on one machine."""

from __future__ import annotations

import itertools
import random
import re
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

PORTS: Final = range(20_000, 30_000)
"""Below those that the system gives to connections: a pod listens only once it has its imports,
and one of them would have been given its port meanwhile."""


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
    return str(next(filter(_is_free, _candidates)))


def _ports() -> Iterator[int]:
    """Each again only after all others; runs beside one another begin at different ones."""
    start = random.SystemRandom().choice(PORTS)
    return itertools.cycle([*range(start, PORTS.stop), *range(PORTS.start, start)])


_candidates: Final = _ports()


def _is_free(port: int) -> bool:
    """On every address, as a gang's store listens on all."""
    try:
        with socket.socket() as probe:
            probe.bind(("", port))
    except OSError:
        return False
    return True
