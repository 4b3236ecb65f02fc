"""Leader election against an API server in memory, by a clock that the test turns."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from rlhf_operator.api import ApiError
from rlhf_operator.leader import Leader

Object = dict[str, Any]


class LeaseServer:
    """Keeps one Lease, as an API server does: a replacement names the version that it replaces."""

    def __init__(self) -> None:
        self.lease: Object | None = None
        self.is_away = False
        self.before_answer: Callable[[], None] = lambda: None
        self.on_its_way: Callable[[], None] = lambda: None
        self.asked: list[str] = []
        self._version = 0

    async def request(self, method: str, path: str, *, body: Object | None = None, **_: Any) -> Any:
        self.asked.append(method)
        self.on_its_way()
        if self.is_away:
            raise ApiError(503, "ServiceUnavailable", "away")
        if method == "GET":
            if self.lease is None:
                raise ApiError(404, "NotFound", path)
            return copy.deepcopy(self.lease)
        assert body is not None
        if method == "POST" and self.lease is not None:
            raise ApiError(409, "AlreadyExists", path)
        if method == "PUT":
            assert self.lease is not None
            if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
                raise ApiError(409, "Conflict", path)
        self._version += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(self._version)
        self.before_answer()
        return copy.deepcopy(self.lease)


class Bench:
    """A server, a clock, and candidates that try once when the test says so."""

    def __init__(self) -> None:
        self.server = LeaseServer()
        self.now = 1000.0

    def candidate(self, name: str) -> Leader:
        return Leader(self.server, "ns", name, clock=lambda: self.now)  # type: ignore[arg-type]

    async def tries(self, *candidates: Leader) -> None:
        for candidate in candidates:
            with contextlib.suppress(ApiError):
                await candidate._try()


def run(test: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60):
            await test(Bench())

    asyncio.run(main())


def test_one_of_two_leads() -> None:
    async def test(bench: Bench) -> None:
        a, b = bench.candidate("a"), bench.candidate("b")
        await bench.tries(a, b)
        assert (a.leads(), b.leads()) == (True, False)
        assert b.holder == "a"

    run(test)


def test_whoever_waits_says_once_for_whom(caplog: pytest.LogCaptureFixture) -> None:
    """It may be another installation in that namespace, beside which this one does nothing."""

    async def test(bench: Bench) -> None:
        a, b = bench.candidate("a"), bench.candidate("b")
        await bench.tries(a, b, a, b)

    with caplog.at_level("INFO"):
        run(test)
    assert caplog.messages == [
        "a leads.",
        "a leads; this replica waits for the lease ns/rlhf-operator.",
    ]


def test_a_leader_stops_before_another_can_begin() -> None:
    async def test(bench: Bench) -> None:
        a, b = bench.candidate("a"), bench.candidate("b")
        await bench.tries(a, b)
        for _ in range(200):  # a is stopped; b looks every 0.1 s
            bench.now += 0.1
            await bench.tries(b)
            assert not (a.leads() and b.leads())
            if b.leads():
                break
        assert b.leads()
        assert bench.now - 1000.0 < 13

    run(test)


@pytest.mark.parametrize("seconds", [0.1, 2.5, 4.5])
def test_a_leader_leads_on_where_each_answer_is_late(seconds: float) -> None:
    """An API server that is short of memory, or whose etcd's disk is slow, still answers."""

    async def test(bench: Bench) -> None:
        a = bench.candidate("a")
        led: list[bool] = []

        def late() -> None:
            bench.now += seconds
            led.append(a.leads())

        bench.server.on_its_way = late
        for _ in range(20):
            began = bench.now
            await bench.tries(a)
            bench.now += a._pause(began)
            led.append(a.leads())
        assert led == [False] * 2 + [True] * (len(led) - 2)

    run(test)


def test_a_leader_renews_with_one_request() -> None:
    async def test(bench: Bench) -> None:
        a = bench.candidate("a")
        await bench.tries(a, a, a)
        assert bench.server.asked == ["GET", "POST", "PUT", "PUT"]

    run(test)


def test_a_leader_whose_lease_somebody_has_annotated_renews_it_as_it_is() -> None:
    async def test(bench: Bench) -> None:
        a = bench.candidate("a")
        await bench.tries(a)
        assert bench.server.lease is not None
        bench.server.lease["metadata"] |= {"resourceVersion": "77", "annotations": {"any": "thing"}}
        bench.now += 9
        await bench.tries(a)
        bench.now += 9
        assert a.leads()
        assert bench.server.lease["metadata"]["annotations"] == {"any": "thing"}

    run(test)


def test_a_leader_that_renews_keeps_the_lease() -> None:
    async def test(bench: Bench) -> None:
        a, b = bench.candidate("a"), bench.candidate("b")
        for _ in range(50):
            await bench.tries(a, b)
            assert (a.leads(), b.leads()) == (True, False)
            bench.now += 2

    run(test)


def test_the_lease_counts_from_before_the_request() -> None:
    async def test(bench: Bench) -> None:
        a = bench.candidate("a")

        def slow() -> None:
            bench.now += 9

        bench.server.before_answer = slow
        await bench.tries(a)
        assert a.leads()  # 12 s, less 9, less the margin of 2
        bench.now += 1.5
        assert not a.leads()

    run(test)


def test_a_term_that_lapsed_is_over_before_the_next_begins() -> None:
    async def test(bench: Bench) -> None:
        a = bench.candidate("a")
        await bench.tries(a)
        await a.won()
        bench.now += 60  # stopped, and resumed; nobody else was there
        assert not a.leads()
        before = copy.deepcopy(bench.server.lease)
        await bench.tries(a)
        assert not a.leads()  # what was begun under the old term has not been dropped yet
        assert bench.server.lease == before
        await a.lost()
        a.resign()
        await bench.tries(a)
        assert a.leads()

    run(test)


def test_a_renewal_that_was_answered_too_late_prolongs_nothing() -> None:
    async def test(bench: Bench) -> None:
        a = bench.candidate("a")
        await bench.tries(a)
        await a.won()

        def stopped() -> None:
            bench.now += 5

        bench.server.before_answer = stopped
        bench.now += 9
        await bench.tries(a)
        assert not a.leads()

    run(test)


def test_an_api_server_that_is_away_ends_the_term() -> None:
    async def test(bench: Bench) -> None:
        a = bench.candidate("a")
        await bench.tries(a)
        bench.server.is_away = True
        for _ in range(6):
            bench.now += 2
            await bench.tries(a)
        assert not a.leads()
        bench.server.is_away = False
        await bench.tries(a)
        assert a.leads()

    run(test)


def test_a_lease_that_was_released_is_taken_at_once() -> None:
    async def test(bench: Bench) -> None:
        a, b = bench.candidate("a"), bench.candidate("b")
        await bench.tries(a, b)
        await a._release()
        assert not a.leads()
        await bench.tries(b)
        assert b.leads()
        assert bench.server.lease is not None
        assert bench.server.lease["spec"]["leaseTransitions"] == 2

    run(test)


def test_of_two_that_take_an_expired_lease_one_wins() -> None:
    async def test(bench: Bench) -> None:
        a, b, c = (bench.candidate(name) for name in "abc")
        await bench.tries(a, b, c)
        bench.now += 13
        await asyncio.gather(bench.tries(b), bench.tries(c))
        assert b.leads() != c.leads()

    run(test)
