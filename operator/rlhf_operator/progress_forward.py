"""Passes a report on to the replica that leads, once, with a time-out."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any, Final, NamedTuple

import aiohttp

from rlhf_operator.tls import TLSFiles, client_context

FORWARDED: Final = "Rlhf-Forwarded"
"""Marks a report that another replica passed on, so that it is not passed on again."""
FORWARD_SECONDS: Final = 4.0
"""Less than the 5 s after which a trainer gives up."""
CONCURRENT_FORWARDS: Final = 64
ADDRESS: Final = re.compile(r"(?:\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-fA-F:.]+\]):\d{1,5}")
log = logging.getLogger(__name__)


class KnownLeader(NamedTuple):
    """Who leads, as far as this replica knows."""

    is_here: bool
    address: str | None = None  # IP:PORT of the leader's progress server


class Answer(NamedTuple):
    """What the leader said."""

    status: int
    text: str


def address_of(ip: str, port: int) -> str:
    """IP:PORT as a URL has it: an IPv6 address in brackets."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def address_in(identity: str) -> str | None:
    """The address in a Lease's holder identity, ``NAME_IP:PORT``; None where there is none."""
    address = identity.rpartition("_")[2]
    return address if ADDRESS.fullmatch(address) else None


class Forwarder:
    """A client of the other replica's progress server. To be closed."""

    def __init__(self, tls: TLSFiles | None) -> None:
        self._scheme = "https" if tls else "http"
        self._options: dict[str, Any] = {}
        if tls:
            self.trust(tls)
        self._session = aiohttp.ClientSession()
        self._free = asyncio.Semaphore(CONCURRENT_FORWARDS)

    def trust(self, tls: TLSFiles) -> None:
        """From now on the authority that the file holds now, and no other. Raises OSError."""
        self._options = {"server_hostname": tls.name, "ssl": client_context(tls)}

    async def send(self, address: str, path: str, token: str, body: bytes) -> Answer | None:
        """The leader's answer, or None where it gives none in time."""
        url = f"{self._scheme}://{address}{path}"
        headers = {"Authorization": f"Bearer {token}", FORWARDED: "1"}
        try:
            async with (
                asyncio.timeout(FORWARD_SECONDS),  # with the wait for a turn, or they pile up
                self._free,
                self._session.post(
                    url, data=body, headers=headers, allow_redirects=False, **self._options
                ) as answer,
            ):
                return Answer(answer.status, (await answer.text())[:256])
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            log.warning("the leader at %s takes no report: %s", address, error or "time-out")
            return None

    async def close(self) -> None:
        """Lets go of the connections."""
        await self._session.close()
