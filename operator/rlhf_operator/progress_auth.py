"""Who reports: a pod, by its bound service-account token of our own audience.

A token is looked at three times, the cheapest first: its claims, unverified, must name a pod that
runs the very attempt that the path names; a TokenReview then says whether the token is genuine; its
answer must name that same pod. So what is made up costs the API server next to nothing.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from rlhf_api.job import KIND

from rlhf_operator.names import LABEL_ATTEMPT, LABEL_JOB, LABEL_STAGE, child_name
from rlhf_operator.render.platform import PROGRESS_AUDIENCE

TOKEN_LIMIT: Final = 8192
"""Characters; tokens of service accounts have about a thousand."""
CACHE_LIMIT: Final = 8192
"""Answers that are remembered."""
HELD_SECONDS: Final = 600.0
"""How long a token that is genuine is not asked about again."""
REFUSAL_SECONDS: Final = 60.0
"""And one that was refused."""
CONCURRENT_REVIEWS: Final = 8
POD_NAME: Final = "authentication.kubernetes.io/pod-name"
POD_UID: Final = "authentication.kubernetes.io/pod-uid"
ACCOUNT: Final = "system:serviceaccount:"

Object = Mapping[str, Any]


class Identity(NamedTuple):
    """A pod, as its token names it."""

    namespace: str
    pod: str
    uid: str


class Reporter(NamedTuple):
    """The attempt that a pod works on."""

    namespace: str
    job: str
    stage: str
    attempt: int


def claimed(token: str) -> Identity | None:
    """The pod that a token for us says it is of; nobody has verified it. None for anything else.

    When it expires is left to the API server, whose clock may be another than ours.
    """
    if len(token) > TOKEN_LIMIT or not token.isascii() or token.count(".") != 2:
        return None
    try:
        payload = json.loads(_decoded(token.split(".")[1]))
        bound = payload["kubernetes.io"]
        identity = Identity(bound["namespace"], bound["pod"]["name"], bound["pod"]["uid"])
        is_ours = PROGRESS_AUDIENCE in payload["aud"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return identity if is_ours and _are_names(identity) else None


def _decoded(segment: str) -> bytes:
    return base64.b64decode(segment + "=" * (-len(segment) % 4), altchars="-_", validate=True)


def _are_names(identity: Identity) -> bool:
    return all(isinstance(name, str) and 0 < len(name) <= 253 for name in identity)


def review_body(token: str) -> dict[str, Any]:
    """The TokenReview to create."""
    return {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [PROGRESS_AUDIENCE]},
    }


def reviewed(review: Object) -> Identity | None:
    """The pod that an answered TokenReview vouches for; None where it vouches for none."""
    status = review.get("status") or {}
    user = status.get("user") or {}
    account = str(user.get("username", ""))
    extra = user.get("extra") or {}
    names, uids = extra.get(POD_NAME) or [], extra.get(POD_UID) or []
    is_ours = PROGRESS_AUDIENCE in (status.get("audiences") or [])
    if not (status.get("authenticated") is True and is_ours and account.startswith(ACCOUNT)):
        return None
    if len(names) != 1 or len(uids) != 1:
        return None
    return Identity(account.removeprefix(ACCOUNT).partition(":")[0], names[0], uids[0])


def reporter_of(pod: Object, job: Object) -> Reporter | None:
    """The attempt that a pod works on, by its owners: its batch Job, and that Job's RLHFJob.

    Labels alone would not do: whoever may create pods may write them.
    """
    meta, labels = pod["metadata"], pod["metadata"].get("labels") or {}
    name, stage = labels.get(LABEL_JOB, ""), labels.get(LABEL_STAGE, "")
    number = str(labels.get(LABEL_ATTEMPT, ""))
    job_meta = job["metadata"]
    if not number.isdecimal() or job_meta["name"] != child_name(name, stage, int(number)):
        return None
    if meta.get("namespace") != job_meta.get("namespace"):
        return None
    is_child = ("Job", job_meta["name"], job_meta.get("uid")) in _controllers(meta)
    is_ours = any((kind, owner) == (KIND, name) for kind, owner, _ in _controllers(job_meta))
    if not (is_child and is_ours):
        return None
    return Reporter(meta["namespace"], name, stage, int(number))


def _controllers(meta: Object) -> list[tuple[str, str, str]]:
    owners = meta.get("ownerReferences") or []
    chosen = [owner for owner in owners if owner.get("controller")]
    return [(owner["kind"], owner["name"], owner["uid"]) for owner in chosen]


class Budget:
    """So many acts a second for each of many keys, with a reserve for bursts."""

    def __init__(self, rate: float, burst: int, limit: int = CACHE_LIMIT) -> None:
        self._rate, self._burst, self._limit = rate, burst, limit
        self._left: OrderedDict[object, tuple[float, float]] = OrderedDict()  # acts, as of when

    def spend(self, key: object, now: float) -> bool:
        """Takes one act from the key's budget; False where nothing is left."""
        left, since = self._left.pop(key, (float(self._burst), now))
        left = min(left + (now - since) * self._rate, self._burst)
        is_allowed = left >= 1
        self._left[key] = (left - is_allowed, now)
        if len(self._left) > self._limit:
            self._left.popitem(last=False)
        return is_allowed


class Answer(NamedTuple):
    """What a TokenReview said, and how long that holds."""

    identity: Identity | None
    until: float  # on the verifier's clock


class TokenVerifier:
    """Asks the API server whether a token is genuine, and takes its word for a while.

    That is safe although a token dies with its pod: who may report is looked up among the pods
    that are there at each report.
    """

    def __init__(
        self,
        create_review: Callable[[dict[str, Any]], Awaitable[Object]],
        clock: Callable[[], float],
    ) -> None:
        """`create_review` creates a TokenReview and returns the answer; `clock`: seconds that only
        rise."""
        self._create_review, self._clock = create_review, clock
        self._known: OrderedDict[bytes, Answer] = OrderedDict()
        self._reviews = asyncio.Semaphore(CONCURRENT_REVIEWS)

    def remembered(self, token: str) -> Answer | None:
        """The answer that is known; None where the API server would have to be asked."""
        answer = self._known.get(_digest(token))
        return answer if answer and self._clock() < answer.until else None

    async def ask(self, token: str) -> Answer:
        """Has the API server look at the token. Raises what the client raises."""
        async with self._reviews:
            identity = reviewed(await self._create_review(review_body(token)))
        holds = HELD_SECONDS if identity else REFUSAL_SECONDS
        answer = Answer(identity, self._clock() + holds)
        self._known[_digest(token)] = answer
        if len(self._known) > CACHE_LIMIT:
            self._known.popitem(last=False)
        return answer


def _digest(token: str) -> bytes:
    """Tokens themselves are not kept."""
    return hashlib.sha256(token.encode()).digest()
