"""One pod's life on its node, from being bound to its final deletion."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from cluster.kubelet import status
from cluster.kubelet.events import failed_mount
from cluster.kubelet.runtime import Container, Host, NotReady, Object, Runtime
from cluster.kubelet.status import Exit, Verdict

RETRY_EVERY: Final = 0.5
"""Seconds between two tries to make a container."""
SETTLE: Final = 0.01
"""Seconds that a report waits for the next state; a kubelet merges states that follow at once."""
DEADLINE_MESSAGE: Final = "Pod was active on the node longer than the specified deadline"
DEFAULT_GRACE: Final = 30.0
UNKNOWN_EXIT: Final = Exit(
    137, "The container could not be located when the pod was terminated", "ContainerStatusUnknown"
)


class Worker:
    """Runs as one task. `notice` tells it what the API server says of the pod.

    `contact` is set while the node reaches the API server; what it has to say waits for that.
    """

    def __init__(self, pod: Object, runtime: Runtime, host: Host, contact: asyncio.Event) -> None:
        self.pod = pod
        self.container: Container | None = None
        self._runtime = runtime
        self._host = host
        self._contact = contact
        self._told = ""  # why there is no container
        self._verdict: Verdict | None = None
        self._is_gone = False
        self._changed = asyncio.Event()
        self._in_order = asyncio.Lock()
        self._accepted_at = time.time()

    def notice(self, pod: Object) -> None:
        """The pod as the API server has it."""
        if _version(pod) > _version(self.pod):
            self.pod = pod
        self._changed.set()

    def notice_gone(self) -> None:
        """The object is not there any more: what runs has to end, and nothing is reported."""
        self._is_gone = True
        self._changed.set()

    def judge(self, verdict: Verdict) -> None:
        """The kubelet itself ends the pod."""
        self._verdict = self._verdict or verdict
        self._changed.set()

    async def live(self) -> None:
        """Runs the pod, reports how it ended, and completes its deletion."""
        if self.pod["status"].get("phase") not in ("Succeeded", "Failed"):
            await self._say(await self._last_report())
        while not (self._is_deleting or self._is_gone):
            await self._news()
        await self._contact.wait()
        if not self._is_gone:
            await self._host.api.delete_now(self.pod)

    async def _last_report(self) -> Object:
        if self.pod["status"].get("phase") == "Running":  # left by a kubelet before this one
            return status.ended(self.pod, time.time(), UNKNOWN_EXIT)
        self.container = await self._create()
        if self.container is None:
            return status.never_started(self.pod, time.time(), self._verdict)
        end = await self._end_of(self.container)
        return status.ended(self.pod, time.time(), end, self._verdict)

    async def _create(self) -> Container | None:
        """The container; None where the pod has to end before there is one."""
        making = asyncio.create_task(self._keep_trying())
        await asyncio.wait({making}, timeout=SETTLE)
        if not (making.done() or self._told):
            await self._say(status.creating(self.pod, time.time()))
        while not making.done() and self._grace is None:
            await self._news(making)
        making.cancel()
        await asyncio.wait({making})
        return None if making.cancelled() else making.result()

    async def _keep_trying(self) -> Container:
        while True:
            try:
                return await self._runtime.create(self.pod, self._host)
            except NotReady as why:
                if why.message != self._told:
                    self._told = why.message
                    await self._tell(why)
            await asyncio.sleep(RETRY_EVERY)

    async def _tell(self, why: NotReady) -> None:
        """A container that cannot be made is in the status; a missing volume is an event."""
        now = time.time()
        if why.is_event:
            await self._say(status.creating(self.pod, now))
            await failed_mount(self._host.api, self.pod, why.message)
        else:
            await self._say(status.creating(self.pod, now, why.reason, why.message))

    async def _end_of(self, container: Container) -> Exit:
        ending = asyncio.ensure_future(container.wait())
        await asyncio.wait({ending}, timeout=SETTLE)
        if not ending.done():
            await self._say(status.running(self.pod, time.time(), container.started_at))
        while not ending.done():
            if self._grace is not None:
                container.stop(self._grace)
            await self._news(ending)
        return ending.result()

    async def _news(self, *others: asyncio.Future[Any]) -> None:
        """Until something has changed, one of the others is done, or the deadline has passed."""
        changed = asyncio.create_task(self._changed.wait())
        left = self._time_left
        await asyncio.wait({changed, *others}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()
        self._changed.clear()
        if self._time_left == 0:
            self.judge(Verdict("DeadlineExceeded", DEADLINE_MESSAGE, grace=self._own_grace))

    async def _say(self, report: Object) -> None:
        """Writes the status, once the node reaches the API server."""
        async with self._in_order:
            await self._contact.wait()
            if self._is_gone:
                return
            written = await self._host.api.patch_status(self.pod, report)
            if written is None:
                self.notice_gone()
            else:
                self.notice(written)

    @property
    def has_ended(self) -> bool:
        """Whether its containers will write no more."""
        return self._is_gone or self.pod["status"].get("phase") in ("Succeeded", "Failed")

    @property
    def _is_deleting(self) -> bool:
        return "deletionTimestamp" in self.pod["metadata"]

    @property
    def _grace(self) -> float | None:
        """Seconds that the pod has to end in; None where it may go on."""
        periods = [self._verdict.grace] if self._verdict else []
        if self._is_deleting:
            periods.append(float(self.pod["metadata"]["deletionGracePeriodSeconds"]))
        elif self._is_gone:
            periods.append(self._own_grace)
        return min(periods, default=None)

    @property
    def _own_grace(self) -> float:
        return float(self.pod["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE))

    @property
    def _time_left(self) -> float | None:
        """Seconds to the pod's own deadline; None where there is none, or it has been judged."""
        deadline = self.pod["spec"].get("activeDeadlineSeconds")
        if deadline is None or self._verdict:
            return None
        return max(0.0, self._accepted_at + float(deadline) - time.time())


def _version(pod: Object) -> int:
    return int(pod["metadata"]["resourceVersion"])
