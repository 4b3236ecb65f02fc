"""Credentials that are loaded anew once the API server takes them no longer.

The client reads those of a kubeconfig once: a token that a plug-in of a cloud has issued holds for
15 minutes. A pod's own it reads each minute of the wall clock, which may be put back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from kubernetes.aio.client import Configuration

log = logging.getLogger(__name__)

Login = Callable[[Configuration], Awaitable[Any]]
"""Fills in the settings that are given. May raise anything: plug-ins log in."""

LOGIN_AGAIN: Final = 10.0
"""Seconds between two logins: a plug-in takes some, and the server may refuse whatever it gives."""


class Credentials:
    """Those of one client."""

    def __init__(self, settings: Configuration, login: Login | None) -> None:
        self.number = 0
        """Rises with each login."""
        self._settings, self._login = settings, login
        self._turn = asyncio.Lock()
        self._tried = float("-inf")

    async def renewed(self, refused: int) -> bool:
        """Whether there are others now than those of that number, which the server has refused."""
        async with self._turn:
            now = time.monotonic()
            if self.number == refused and self._login and now >= self._tried + LOGIN_AGAIN:
                self._tried = now
                try:
                    await self._login(self._settings)
                    self.number += 1
                except Exception as error:
                    log.warning("The API server takes the credentials no longer: %s", error)
            return self.number != refused
