"""Rewards from an HTTP endpoint: what it may answer, and what becomes of what it may not."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import parse_headers
from typing import Any

import pytest
from rlhf_api.stages.ppo import HttpReward
from rlhf_trainer.data.examples import Extras
from rlhf_trainer.errors import ConfigurationError, NonFinite, Transient
from rlhf_trainer.ppo import http_reward
from rlhf_trainer.ppo.answered import Answered, Question
from rlhf_trainer.ppo.http_reward import HttpScore
from rlhf_trainer.ranks import Ranks

PROMPTS = ["what colour has a lemon?", "香蕉是什么颜色？", "and the sky above us?"]
SAID = ["yellow", "", "黄色, I think"]
ASKED = Answered(
    [Question("a.jsonl:1", prompt, (), Extras(), {}, []) for prompt in PROMPTS], SAID, [], []
)
PIECE = 4096
GOOD = b'{"rewards": [1, 2.5, -3]}'


class Endpoint:
    """Gives one raw answer to each request, the last of them for ever; keeps what it was asked."""

    def __init__(self, *answers: bytes, pause: float = 0.0) -> None:
        self.answers, self.pause = list(answers), pause
        self.asked: list[Any] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/score"

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        answer = self.answers[min(len(self.asked), len(self.answers) - 1)]
        with connection.makefile("rb") as request:
            headers = parse_headers(request) if request.readline() else {}
            self.asked.append(json.loads(request.read(int(headers["Content-Length"]))))
        try:
            for at in range(0, len(answer), PIECE):
                connection.sendall(answer[at : at + PIECE])
                time.sleep(self.pause)
        except OSError:  # the client has had enough
            return


@contextmanager
def endpoint(*answers: bytes, pause: float = 0.0) -> Iterator[Endpoint]:
    started = Endpoint(*answers, pause=pause)
    threading.Thread(target=started.serve, daemon=True).start()
    yield started
    started.listener.close()


def reply(body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (size, body)


def scores(url: str, seconds: float = 20.0, retries: int = 2) -> list[float]:
    asked = HttpReward(url=url, retries=retries, timeout_seconds=seconds)
    values: list[float] = HttpScore(asked, Ranks(), sleep=lambda _: None).score(ASKED).raw.tolist()
    return values


@pytest.mark.parametrize(
    "broken",
    [
        reply(GOOD[:9], len(GOOD)),
        b"nonsense\r\n\r\n",
        b"",
        b"HTTP/1.1 503 Busy\r\n\r\n",
        reply(b"[" * 100_000),
        reply(b"<html>"),
    ],
)
def test_an_answer_that_breaks_off_or_makes_no_sense_is_asked_for_again(broken: bytes) -> None:
    with endpoint(broken, reply(GOOD)) as server:
        assert scores(server.url) == [1.0, 2.5, -3.0]
        assert server.asked == [{"prompts": PROMPTS, "answers": SAID}] * 2
    with endpoint(broken) as server, pytest.raises(Transient, match="failed 3 times"):
        scores(server.url)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"rewards": [1]}', "gave 1 rewards for 3 answers"),
        (b'{"scores": []}', 'no list "rewards"'),
        (b'{"rewards": [1, true, 3]}', "gave True where a number"),
        (b'{"rewards": [1, "' + b"x" * 4000 + b'", 3]}', "gave 'x{79} where a number"),
        (b"[1, 2]", 'no list "rewards"'),
    ],
)
def test_an_answer_that_can_never_be_right_is_final(body: bytes, told: str) -> None:
    with endpoint(reply(body)) as server:
        with pytest.raises(ConfigurationError, match=told):
            scores(server.url)
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("number", "shown"),
    [(b"Infinity", "inf"), (b"NaN", "nan"), (b"-1" + b"0" * 400, "-inf")],
    ids=["inf", "nan", "huge"],
)
def test_a_reward_that_is_not_finite_is_a_divergence(number: bytes, shown: str) -> None:
    with endpoint(reply(b'{"rewards": [1, 2, %s]}' % number)) as server:
        said = f"the reward of {server.url} for the answer '黄色, I think' is {shown}"
        with pytest.raises(NonFinite, match=said):
            scores(server.url)


def test_an_endpoint_that_stays_busy_is_named_with_its_answer() -> None:
    busy = endpoint(b"HTTP/1.1 503 Busy\r\n\r\n")
    with busy as server, pytest.raises(Transient, match="failed 2 times: HTTP 503"):
        scores(server.url, retries=1)


def test_an_answer_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with endpoint(reply(b" " * 10**7), pause=0.05) as server:
        began = time.monotonic()
        with pytest.raises(Transient, match="did not end in time"):
            scores(server.url, seconds=2.0, retries=0)
        assert time.monotonic() - began < 60  # of two minutes
    monkeypatch.setattr(http_reward, "LONGEST_REPLY", 1 << 20)
    endless = endpoint(reply(b" " * (2 << 20)))
    with endless as server, pytest.raises(Transient, match="more than 1 MiB"):
        scores(server.url)
