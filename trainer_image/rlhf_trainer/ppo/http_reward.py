"""Scores from an endpoint of the user's: asked again where it is down."""

from __future__ import annotations

import json
import logging
import math
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any, Final
from urllib.request import getproxies, proxy_bypass

from rlhf_api.stages.ppo import HttpReward

from rlhf_trainer.errors import ConfigurationError, Transient
from rlhf_trainer.ppo.answered import Answered, Scores
from rlhf_trainer.ranks import Ranks

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 30.0
LONGEST_REPLY: Final = 64 << 20
"""Bytes of an endpoint's reply; that of a thousand answers has some ten thousand."""
PIECE: Final = 1 << 16
PORTS: Final = {"http": 80, "https": 443}
REACHED_SECONDS: Final = 5.0


def unreachable(url: str) -> str | None:
    """Why nothing listens at an address, or None. Nothing is asked: an answer may cost much. What
    goes through a proxy is not looked at."""
    parts = urllib.parse.urlsplit(url)
    try:
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
        is_direct = parts.scheme not in getproxies() or proxy_bypass(host)
        if is_direct:
            socket.create_connection((host, port), timeout=REACHED_SECONDS).close()
    except (OSError, ValueError) as error:
        return _reason(error)
    return None


class HttpScore:
    """An endpoint that gets the whole batch from rank 0; Transient where it stays down."""

    def __init__(
        self, endpoint: HttpReward, ranks: Ranks, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.endpoint, self.ranks, self.sleep = endpoint, ranks, sleep

    def score(self, answered: Answered) -> Scores:
        """What the endpoint says."""
        rewards = self.ranks.on_main(lambda: self._ask(answered))
        return Scores.said(self.endpoint.url, rewards, answered)

    def _ask(self, answered: Answered) -> list[float]:
        question = {"prompts": answered.prompts, "answers": list(answered.answers)}
        body = json.dumps(question, ensure_ascii=False).encode()
        pause, tries = FIRST_PAUSE_SECONDS, self.endpoint.retries + 1
        for attempt in range(1, tries + 1):
            try:
                return _rewards(self.endpoint.url, self._post(body), len(answered.answers))
            except (OSError, ValueError, HTTPException) as error:  # time-outs are OSErrors
                reason = _reason(error)
            if attempt < tries:
                log.warning("%s: %s; trying again in %.0f s", self.endpoint.url, reason, pause)
                self.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        raise Transient(f"the reward at {self.endpoint.url} failed {tries} times: {reason}")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json; charset=utf-8"}
        request = urllib.request.Request(self.endpoint.url, body, headers, method="POST")
        with urllib.request.urlopen(request, timeout=self.endpoint.timeout_seconds) as reply:
            return _whole(reply, time.monotonic() + self.endpoint.timeout_seconds)


def _whole(reply: Any, until: float) -> bytes:
    """The body. The socket's own time-out begins anew with each piece, and a body may be endless:
    neither may hold all ranks, or fill the memory of one.
    """
    content = bytearray()
    while piece := reply.read1(PIECE):
        content += piece
        if len(content) > LONGEST_REPLY:
            raise ValueError(f"its reply has more than {LONGEST_REPLY >> 20} MiB")
        if time.monotonic() > until:
            raise TimeoutError("its reply did not end in time (timeoutSeconds)")
    if reply.length:  # bytes that were announced and did not come
        raise ValueError("the connection broke in mid-reply")
    return bytes(content)


def _rewards(url: str, reply: bytes, expected: int) -> list[float]:
    """The numbers in a reply. A reply that can never be right is ConfigurationError: no retry."""
    try:
        found = json.loads(reply)
    except RecursionError:
        raise ValueError("its reply is nested too deeply") from None
    rewards = found.get("rewards") if isinstance(found, dict) else None
    if not isinstance(rewards, list) or len(rewards) != expected:
        shape = f"{len(rewards)} rewards" if isinstance(rewards, list) else 'no list "rewards"'
        raise ConfigurationError(f"{url} gave {shape} for {expected} answers")
    return [_number(url, value) for value in rewards]


def _number(url: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{url} gave {repr(value)[:80]} where a number was expected")
    try:
        return float(value)
    except OverflowError:  # JSON's integers have any length
        return math.inf if value > 0 else -math.inf


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    cause = getattr(error, "reason", error)
    return str(cause) or type(cause).__name__
