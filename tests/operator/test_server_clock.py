"""Which clock counts, where an operator's machine and the API server disagree."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from builders import NOON
from rlhf_operator.server_clock import ServerClock


class Machine:
    """Its clock is ahead of the server's by so many seconds."""

    def __init__(self, ahead: float) -> None:
        self.ahead = ahead
        self.true = NOON
        self.clock = ServerClock(self.shows)

    def shows(self) -> datetime:
        return self.true + timedelta(seconds=self.ahead)

    def ask(self, there: float = 0.0, back: float = 0.0) -> None:
        """A request that takes so many seconds to the server, whose answer takes as many back."""
        sent = self.shows()
        self.true += timedelta(seconds=there)
        date = self.true.strftime("%a, %d %b %Y %H:%M:%S GMT")
        self.true += timedelta(seconds=back)
        self.clock.hear(date, sent)

    @property
    def off(self) -> float:
        return (self.clock.now() - self.true).total_seconds()


@pytest.mark.parametrize("ahead", [3600, 60, -60, -86_400])
def test_a_clock_that_is_off_is_put_right(ahead: float) -> None:
    machine = Machine(ahead)
    assert machine.off == ahead
    machine.ask(0.5, 0.5)
    assert abs(machine.off) <= 1


@pytest.mark.parametrize(("there", "back"), [(0, 0), (30, 0), (0, 30), (20, 10)])
@pytest.mark.parametrize("ahead", [0, 3, -3])
def test_a_slow_answer_makes_no_clock_wrong(ahead: float, there: float, back: float) -> None:
    machine = Machine(ahead)
    for _ in range(3):
        machine.ask(there, back)
    assert machine.off == ahead


def test_a_clock_that_is_put_back_or_right_is_seen() -> None:
    machine = Machine(3600)
    machine.ask()
    for ahead in (-3600, 0):
        machine.ahead = ahead
        machine.ask()
        assert abs(machine.off) <= 1
    assert machine.clock.now() == machine.true


@pytest.mark.parametrize("date", [None, "", "yesterday", "2026-01-31T12:00:00Z"])
def test_an_answer_without_a_date_tells_nothing(date: str | None) -> None:
    machine = Machine(3600)
    machine.clock.hear(date, machine.shows())
    assert machine.off == 3600


def test_it_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(-120)
    with caplog.at_level("INFO"):
        for _ in range(3):
            machine.ask()
        machine.ahead = 0
        machine.ask()
    assert caplog.messages == [
        "This machine's clock is 120 s behind the API server's, which counts.",
        "This machine's clock agrees with the API server's again.",
    ]
