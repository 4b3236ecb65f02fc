"""The server that trainers report to: KubeflowCallback's protocol, for the pods of all jobs.

Every replica serves. The one that leads keeps reports; another passes them on to it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from rlhf_operator.names import JobKey
from rlhf_operator.observed import Progress
from rlhf_operator.progress import BODY_LIMIT, parse_report
from rlhf_operator.progress_auth import (
    Budget,
    Identity,
    Object,
    Reporter,
    TokenVerifier,
    claimed,
)
from rlhf_operator.progress_forward import FORWARDED, Forwarder, KnownLeader
from rlhf_operator.tls import TLSFiles, keep_fresh, on_renewal, server_context

PATH: Final = "/namespaces/{namespace}/rlhfjobs/{job}/{stage}/{attempt:[1-9][0-9]{0,8}}"
"""As render.environment.progress_address writes it."""
READ_SECONDS: Final = 10.0
REVIEW_SECONDS: Final = 4.0
log = logging.getLogger(__name__)


class ProgressServer:
    """Takes reports of pods that prove who they are, each on its own attempt."""

    def __init__(
        self,
        *,
        create_review: Callable[[dict[str, Any]], Awaitable[Object]],
        works_on: Callable[[Identity, Reporter], bool],
        take: Callable[[JobKey, str, int, Progress], None],
        leader: Callable[[], KnownLeader],
        count: Callable[[int], None] = lambda status: None,
    ) -> None:
        """`create_review` creates a TokenReview and returns the answer. `works_on` says whether
        a pod is there and of that attempt. `count` hears the HTTP status of each answer.
        """
        self._works_on, self._take = works_on, take
        self._leader, self._count = leader, count
        self._verifier = TokenVerifier(create_review, time.monotonic)
        self._reviews = Budget(rate=0.1, burst=5)  # of a pod's tokens, from one address
        self._reports = Budget(rate=0.5, burst=5)  # of a pod; trainers send one in 5 s
        self._forwarder: Forwarder | None = None
        self._runner: web.AppRunner | None = None
        self._renewals: list[asyncio.Task[None]] = []

    async def start(self, host: str | None, port: int, tls: TLSFiles | None = None) -> int:
        """Listens; returns the port (`port` 0: any that is free). Raises OSError."""
        context = server_context(tls) if tls else None
        self._forwarder = forwarder = Forwarder(tls)
        if tls and context:
            renewed = on_renewal(tls.authority, lambda: forwarder.trust(tls))
            self._renewals = [
                asyncio.create_task(watching) for watching in (keep_fresh(context, tls), renewed)
            ]
        app = web.Application(client_max_size=BODY_LIMIT)
        app.router.add_post(PATH, self._answer)
        self._runner = web.AppRunner(app, access_log=None, keepalive_timeout=15)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, ssl_context=context, shutdown_timeout=1)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        """Stops listening; answers that are under way get a second."""
        for watching in self._renewals:
            watching.cancel()
        if self._runner:
            await self._runner.cleanup()
        if self._forwarder:
            await self._forwarder.close()

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            answer = await self._handle(request)
        except web.HTTPException as refusal:
            self._count(refusal.status)
            raise
        self._count(answer.status)
        return answer

    async def _handle(self, request: web.Request) -> web.Response:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        pod = claimed(token)
        if pod is None:
            raise web.HTTPUnauthorized(text="no valid token of a pod for this server")
        reporter = _reporter(request)
        if pod.namespace != reporter.namespace:
            raise web.HTTPForbidden(text="the token is of another namespace")
        leader = self._leader()
        if not leader.is_here:
            return await self._pass_on(request, token, leader)
        await self._authorize(request, token, pod, reporter)
        report = parse_report(await _body(request))
        if report is None:
            raise web.HTTPBadRequest(text="the body is no trainerStatus")
        if not self._leader().is_here:  # what is kept was cleared as the term ended
            raise web.HTTPServiceUnavailable(text="this replica has just lost the lead")
        key = JobKey(reporter.namespace, reporter.job)
        self._take(key, reporter.stage, reporter.attempt, report)
        return web.Response()

    async def _authorize(
        self, request: web.Request, token: str, pod: Identity, reporter: Reporter
    ) -> None:
        """Refuses whoever is not a pod of the attempt, or reports too often."""
        if not self._works_on(pod, reporter):
            raise web.HTTPForbidden(text="the token is not of a pod of this attempt")
        if await self._verified(token, pod, request.remote) != pod:
            raise web.HTTPUnauthorized(text="the token is not genuine")
        if not self._reports.spend(pod.uid, time.monotonic()):
            raise web.HTTPTooManyRequests(text="too many reports of this pod")

    async def _verified(self, token: str, pod: Identity, remote: str | None) -> Identity | None:
        """The pod that the API server says the token is of."""
        if known := self._verifier.remembered(token):
            return known.identity
        if not self._reviews.spend((pod.uid, remote), time.monotonic()):
            raise web.HTTPTooManyRequests(text="too many tokens of this pod")
        try:
            async with asyncio.timeout(REVIEW_SECONDS):
                return (await self._verifier.ask(token)).identity
        except Exception as error:  # whatever the client raises: the next report asks again
            log.warning("the API server reviews no token: %s", error or "time-out")
            raise web.HTTPServiceUnavailable(text="the token could not be reviewed") from None

    async def _pass_on(self, request: web.Request, token: str, leader: KnownLeader) -> web.Response:
        """Gives the report to the leader, and its answer back."""
        if FORWARDED in request.headers or leader.address is None or self._forwarder is None:
            raise web.HTTPServiceUnavailable(text="no replica leads yet")
        path = request.rel_url.raw_path
        answer = await self._forwarder.send(leader.address, path, token, await _body(request))
        if answer is None:
            raise web.HTTPServiceUnavailable(text="the replica that leads does not answer")
        return web.Response(status=answer.status, text=answer.text)


def _reporter(request: web.Request) -> Reporter:
    """The attempt that the path names."""
    part = request.match_info
    return Reporter(part["namespace"], part["job"], part["stage"], int(part["attempt"]))


async def _body(request: web.Request) -> bytes:
    """The body, whose size the application limits."""
    try:
        async with asyncio.timeout(READ_SECONDS):
            return await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="the body did not come") from None
