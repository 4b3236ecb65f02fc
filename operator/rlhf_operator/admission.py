"""An optional webhook that validates RLHFJobs: what needs other objects than the job itself.

What is wrong is refused in the one validator's words. What is missing is a warning only: an order
among the objects of a commit is nobody's duty. Nothing depends on this: a manifest that got past it
becomes a condition, and a missing object a reason for waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from aiohttp import web
from rlhf_api.job import KIND, RLHFJob
from rlhf_api.problems import InvalidJob, Problem
from rlhf_api.rules.transitions import broken_transitions
from rlhf_api.validation import parse_job

from rlhf_operator.api import ApiError, Object, Resource
from rlhf_operator.messages import redacted
from rlhf_operator.references import CLAIM, Reference, references
from rlhf_operator.render.platform import Platform
from rlhf_operator.tls import TLSFiles, keep_fresh, server_context

PATH: Final = "/validate"
BODY_LIMIT: Final = 8 * 1024 * 1024
"""Bytes; two objects of etcd's limit with room for their wrapping."""
LOOK_SECONDS: Final = 2.0
"""For all objects together; what is not known by then is not spoken of."""
MOST_PROBLEMS: Final = 20
VERSION: Final = "admission.k8s.io/v1"


class Admission:
    """Answers AdmissionReviews."""

    def __init__(
        self,
        get: Callable[[Resource, str | None, str], Awaitable[Object]],
        platform: Callable[[], Platform],
    ) -> None:
        """`get` reads one object, and raises ApiError; `platform` is what the cluster serves."""
        self._get, self._platform = get, platform

    async def serve(
        self,
        host: str | None,
        port: int,
        tls: TLSFiles,
        started: Callable[[int], None] = lambda port: None,
    ) -> None:
        """Answers at PATH over TLS, as the API server insists, until it is cancelled.

        `started` is told the port (`port` 0: any that is free). Raises OSError.
        """
        context = server_context(tls)
        runner = web.AppRunner(self.app(), access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, ssl_context=context, shutdown_timeout=1).start()
            started(int(runner.addresses[0][1]))
            await keep_fresh(context, tls)
        finally:
            await runner.cleanup()

    def app(self) -> web.Application:
        """The same without a port."""
        app = web.Application(client_max_size=BODY_LIMIT)
        app.router.add_post(PATH, self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.Response:
        try:
            asked = (await request.json())["request"]
            uid, operation = asked["uid"], asked["operation"]
            new, old = asked.get("object") or {}, asked.get("oldObject") or {}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise web.HTTPBadRequest(text=f"not an AdmissionReview of {VERSION}") from None
        answer: Object = {"allowed": True}
        if operation in ("CREATE", "UPDATE") and new.get("spec") != old.get("spec"):
            answer = await self._answer(new, old)
        review = {"apiVersion": VERSION, "kind": "AdmissionReview"}
        return web.json_response(review | {"response": {"uid": uid, **answer}})

    async def _answer(self, new: Object, old: Object) -> Object:
        try:
            job = parse_job(new)
        except InvalidJob as invalid:
            problems = _of_this_edit(invalid.problems, old) if old else invalid.problems
            return _refused(new, problems) if problems else {"allowed": True}
        if problems := _changes(job, old):
            return _refused(new, problems)
        return {"allowed": True, "warnings": await self.warnings(job)}

    async def warnings(self, job: RLHFJob) -> list[str]:
        """A sentence for each object that is named and not there, or does not fit."""
        named = references(job, self._platform())
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                told = await asyncio.gather(*(self._warning(job, item) for item in named))
        except TimeoutError:
            return []
        return [text for text in told if text]

    async def _warning(self, job: RLHFJob, reference: Reference) -> str:
        kind, namespace = reference.kind, None
        if kind.is_namespaced:
            namespace = job.metadata.namespace
        resource = Resource(kind.api_version, kind.kind, kind.plural)
        try:
            found = await self._get(resource, namespace, reference.name)
        except ApiError as error:
            if error.code != 404:
                return ""  # no right to look, or no answer
            where = f" in namespace {namespace}" if namespace else ""
            missing = f"there is no {kind.kind} {reference.name}{where}"
            return f"{reference.path}: {missing}; {kind.consequence}"
        return _misfit(job, reference, found)


def _misfit(job: RLHFJob, reference: Reference, found: Object) -> str:
    """A claim that cannot be mounted where the job wants to write its checkpoints."""
    modes = found.get("spec", {}).get("accessModes") or []
    if reference.kind != CLAIM or reference.name != job.spec.checkpoints.existing_claim:
        return ""
    for name, stage in job.spec.stages.present().items():
        nodes = job.spec.resources.overridden_by(stage.resources).nodes
        if nodes > 1 and "ReadWriteMany" not in modes:
            claim = f"the claim {reference.name} is {' and '.join(modes) or 'of no mode'}"
            return f"{reference.path}: {claim}, and stage {name} runs on {nodes} nodes"
    return ""


def _of_this_edit(problems: Sequence[Problem], old: Object) -> Sequence[Problem]:
    """Those that the object has not had before: newer rules hold up no edit of something else, as
    the API server's own do not (KEP-4008, ratcheting)."""
    try:
        parse_job(old)
    except InvalidJob as invalid:
        return [problem for problem in problems if problem not in invalid.problems]
    return problems


def _changes(job: RLHFJob, old: Object) -> Sequence[Problem]:
    """What may not change and did; nothing where the old object cannot be read."""
    if not old:
        return ()
    try:
        return broken_transitions(parse_job(old).spec, job.spec)
    except InvalidJob:
        return ()


def _refused(manifest: Object, problems: Sequence[Problem]) -> Object:
    """As the API server itself refuses an object; kubectl shows each cause on a line."""
    shown = problems[:MOST_PROBLEMS]
    rest = [f"… and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
    texts = [redacted(str(problem)) for problem in shown]
    causes = [
        {"reason": "FieldValueInvalid", "field": problem.path, "message": _cause(problem)}
        for problem in shown
    ]
    metadata = manifest.get("metadata")
    name = metadata.get("name", "") if isinstance(metadata, dict) else ""
    status: dict[str, Any] = {
        "status": "Failure",
        "code": 422,
        "reason": "Invalid",
        "message": "; ".join(texts + rest),
        "details": {"group": "rlhf.dev", "kind": KIND, "name": name, "causes": causes},
    }
    return {"allowed": False, "status": status}


def _cause(problem: Problem) -> str:
    return redacted(str(problem._replace(path="")).removeprefix(": "))
