"""Leader election by Lease: at most one process acts, and it stops before another can begin.

Not kubernetes.aio.leaderelection: it goes by the wall clock, which may jump and does not run while
a process is stopped; it neither releases nor tells, before a write, whether the lease still holds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from rlhf_operator.api import Api, ApiError, Object, Resource

log = logging.getLogger(__name__)

LEASE_NAME: Final = "rlhf-operator"
LEASES: Final = Resource("coordination.k8s.io/v1", "Lease", "leases")


def boot_clock() -> float:
    """Seconds that go on while this process, or the whole machine, sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Leader:
    """One candidate."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        identity: str,
        *,
        name: str = LEASE_NAME,
        duration: float = 12.0,
        retry: float = 2.0,
        margin: float = 2.0,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        """Times in seconds. `duration`: how long a holder that falls silent is waited for.

        `margin`: how long before its end the holder stops to write, so that a request on its way
        arrives in time.
        """
        self.identity = identity
        self.holder: str | None = None  # whoever leads, as far as is known
        self._api = api
        self._namespace = namespace
        self._name = name
        self._duration = duration
        self._retry = retry
        self._margin = margin
        self._clock = clock
        self._until = float("-inf")  # when our lease ends
        self._ours: Object | None = None  # the Lease as we have written it
        self._seen: tuple[str, float] = ("", clock())  # the Lease's version, and since when
        self._won = asyncio.Event()
        self._is_served = False  # somebody acts on our lease, and has not been told of its loss

    def leads(self) -> bool:
        """Whether a write that is sent now comes before anybody else can lead."""
        return self._clock() < self._until - self._margin

    async def won(self) -> None:
        """Returns once this process leads."""
        while not self.leads():
            self._won.clear()
            await self._won.wait()
        self._is_served = True

    async def lost(self) -> None:
        """Returns once it does not lead any more."""
        while self.leads():
            await asyncio.sleep(min(0.25, self._retry))

    def resign(self) -> None:
        """Work that was begun under the lease has ended; only now may it be taken anew."""
        self._is_served = False

    async def run(self) -> None:
        """Takes the lease, renews it, waits for it; for ever. Releases it when cancelled."""
        try:
            while True:
                began = self._clock()
                try:
                    await self._try()
                except ApiError as error:
                    if error.code != 409:  # somebody else was faster
                        log.warning("Lease %s/%s: %s", self._namespace, self._name, error)
                await asyncio.sleep(self._pause(began))
        finally:
            await asyncio.shield(self._release())

    def _pause(self, began: float) -> float:
        """Seconds until the next try: none where this one took as long."""
        return max(0.0, began + self._retry - self._clock())

    async def _try(self) -> None:
        if self._is_served and not self.leads():
            return  # it has lapsed, and what was begun under it must not see another term
        if self.leads() and await self._renew():
            return
        try:
            lease = await self._send("GET", self._path())
        except ApiError as error:
            if error.code != 404:
                raise
            await self._write("POST", LEASES.path(self._namespace), None)
            return
        known, self.holder = self.holder, lease["spec"].get("holderIdentity") or None
        if self.holder not in (None, self.identity) and not self._has_expired(lease):
            if self.holder != known:
                where = f"{self._namespace}/{self._name}"
                log.info("%s leads; this replica waits for the lease %s.", self.holder, where)
            self._until = float("-inf")
            return
        await self._write("PUT", self._path(), lease)

    async def _renew(self) -> bool:
        """Whether the Lease still was as we had written it: then one request is enough."""
        known, self._ours = self._ours, None
        if known is None:
            return False
        try:
            await self._write("PUT", self._path(), known)
        except ApiError as error:
            if error.code not in (404, 409):
                raise
            return False
        return True

    async def _write(self, method: str, path: str, known: Object | None) -> None:
        """The lease counts from before the request, so for others it never ends earlier."""
        asked = self._clock()
        self._ours = await self._send(method, path, self._written(known))
        self._hold(asked)

    def _hold(self, asked: float) -> None:
        if self._is_served and not self.leads():
            return
        if self.holder != self.identity:
            log.info("%s leads.", self.identity)
        self.holder = self.identity
        self._until = asked + self._duration
        self._won.set()

    def _has_expired(self, lease: Object) -> bool:
        """By how long we have seen it unchanged: clocks of two machines are never compared."""
        version = lease["metadata"]["resourceVersion"]
        now = self._clock()
        if version != self._seen[0]:
            self._seen = (version, now)
        return now - self._seen[1] > float(lease["spec"].get("leaseDurationSeconds") or 0)

    def _written(self, lease: Object | None) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = lease["spec"] if lease else {}
        is_ours = before.get("holderIdentity") == self.identity
        spec = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._duration)),
            "acquireTime": before.get("acquireTime", now) if is_ours else now,
            "renewTime": now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (not is_ours),
        }
        meta = lease["metadata"] if lease else {"name": self._name, "namespace": self._namespace}
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": meta,
            "spec": spec,
        }

    async def _release(self) -> None:
        """Lets the next one in at once; whoever cannot say so is waited for."""
        if not self.leads():
            return
        self._until = float("-inf")
        try:
            lease = await self._send("GET", self._path())
            if lease["spec"].get("holderIdentity") == self.identity:
                lease["spec"]["holderIdentity"] = ""
                await self._send("PUT", self._path(), lease)
        except ApiError as error:
            log.warning("The lease could not be released: %s", error)

    def _path(self) -> str:
        return LEASES.path(self._namespace, self._name)

    async def _send(self, method: str, path: str, body: Object | None = None) -> Object:
        # One that is lost leaves time for another before the lease ends.
        seconds = (self._duration - self._margin) / 2
        return await self._api.request(
            method, path, body=body, label=LEASES.plural, fenced=False, timeout=seconds
        )
