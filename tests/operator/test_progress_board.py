"""When the reports of trainers reach a status."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rlhf_operator.names import JobKey
from rlhf_operator.observed import Progress
from rlhf_operator.progress import METRIC_LIMIT, merged, parse_report
from rlhf_operator.progress_board import INTERVAL, ProgressBoard

TINY = JobKey("default", "tiny")


class Desk:
    """A board with a clock that the test moves, and a queue that runs a pass when it is due."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: list[float] = []
        self.board = ProgressBoard(self._wake, lambda: self.now)
        self.seen: list[tuple[float, dict[tuple[str, int], Progress]]] = []

    def _wake(self, key: JobKey, after: float) -> None:
        assert key == TINY
        assert after >= 0
        self.due.append(self.now + after)

    def report(self, percent: float, attempt: int = 1, **metrics: float) -> None:
        self.board.take(TINY, "ppo", attempt, Progress(percent, None, metrics))

    def move_to(self, moment: float) -> None:
        while self.due and min(self.due) <= moment:
            self.now = min(self.due)
            self.due = [due for due in self.due if due > self.now]
            self.look()
        self.now = moment

    def look(self) -> None:
        self.seen.append((self.now, dict(self.board.of(TINY))))

    def percents(self) -> list[tuple[float, float | None]]:
        return [
            (moment, seen["ppo", max(n for _, n in seen)].percent) for moment, seen in self.seen
        ]


def test_the_first_report_is_seen_at_once_and_the_next_after_ten_seconds() -> None:
    desk = Desk()
    for moment, percent in [(100, 0), (105, 1), (107, 2), (109, 3)]:
        desk.move_to(moment)
        desk.report(percent)
    desk.move_to(130)
    assert desk.percents() == [(100, 0), (110, 3)]


def test_one_pass_is_asked_for_however_many_reports_wait_for_it() -> None:
    desk = Desk()
    desk.report(0)
    desk.move_to(101)
    for percent in range(1, 6):
        desk.report(percent)
    assert desk.due == [110]


def test_the_last_report_is_seen_at_once_and_only_once() -> None:
    desk = Desk()
    for moment, percent in [(100, 99), (103, 100), (104, 40), (105, 100)]:
        desk.move_to(moment)
        desk.report(percent)
    desk.move_to(106)
    assert desk.percents() == [(100, 99), (103, 100)]


def test_a_new_attempt_is_seen_at_once_and_starts_without_the_old_metrics() -> None:
    desk = Desk()
    desk.report(50, kl=0.25)
    desk.move_to(102)
    desk.report(1, attempt=2)
    desk.move_to(102)
    assert desk.board.of(TINY) == {("ppo", 2): Progress(1, None, {})}


def test_a_report_of_an_older_attempt_changes_nothing() -> None:
    desk = Desk()
    desk.report(1, attempt=2)
    desk.move_to(101)
    desk.report(90, attempt=1)
    assert desk.due == []
    assert list(desk.board.of(TINY)) == [("ppo", 2)]


def test_a_report_that_says_nothing_new_wakes_nobody() -> None:
    desk = Desk()
    desk.report(10, kl=0.5)
    desk.move_to(150)
    desk.report(10, kl=0.5)
    assert desk.due == []


def test_a_pass_for_another_reason_sees_no_more_than_it_would() -> None:
    desk = Desk()
    desk.report(10)
    desk.move_to(101)
    desk.report(11)
    assert desk.board.of(TINY)["ppo", 1].percent == 10
    desk.move_to(110)
    assert desk.board.of(TINY)["ppo", 1].percent == 11


def test_a_wake_that_came_to_nothing_is_repeated() -> None:
    desk = Desk()
    desk.report(10)
    desk.due.clear()  # the pass failed before it looked
    desk.now = 105
    desk.report(11)
    assert desk.due == [105]


def test_a_job_that_is_gone_is_forgotten() -> None:
    desk = Desk()
    desk.report(10, attempt=7)
    desk.board.forget(TINY)
    assert desk.board.of(TINY) == {}
    desk.report(1, attempt=1)
    assert list(desk.board.of(TINY)) == [("ppo", 1)]
    desk.board.clear()
    assert desk.board.of(TINY) == {}


def test_where_very_many_jobs_report_each_is_seen_more_rarely() -> None:
    now, woken = 0.0, list[tuple[JobKey, float]]()
    board = ProgressBoard(lambda key, after: woken.append((key, after)), lambda: now)
    keys = [JobKey("default", f"job-{number}") for number in range(600)]

    def all_report(percent: float) -> None:
        for key in keys:
            board.take(key, "ppo", 1, Progress(percent))
            board.of(key)

    all_report(1)
    now = 12.0
    woken.clear()
    all_report(2)
    assert {key for key, _ in woken} == set(keys)
    waits = [now + after for _, after in woken]
    assert max(waits) == 600 / 20
    assert board.of(keys[-1])["ppo", 1].percent == 1
    now = 30.0
    assert board.of(keys[-1])["ppo", 1].percent == 2
    now = 100.0  # the others have ended
    board.take(keys[0], "ppo", 1, Progress(3))
    board.of(keys[0])
    woken.clear()
    board.take(keys[0], "ppo", 1, Progress(4))
    assert woken == [(keys[0], 10.0)]


@given(st.lists(st.tuples(st.floats(0.01, 30), st.integers(0, 100), st.integers(1, 3))))
def test_whatever_comes_the_views_change_rarely_and_end_with_the_newest(
    reports: list[tuple[float, int, int]],
) -> None:
    desk = Desk()
    for wait, percent, attempt in reports:
        desk.move_to(desk.now + wait)
        desk.report(percent, attempt)
        desk.look()  # other things wake passes all the time
    desk.move_to(desk.now + 2 * INTERVAL)
    changes = [b for (_, a), (_, b) in zip(desk.seen, desk.seen[1:], strict=False) if a != b]
    elapsed = desk.now - 100.0
    assert len(changes) <= elapsed / INTERVAL + 2 * 3  # two urgent ones for each of 3 attempts
    if reports:
        newest = max(attempt for _, _, attempt in reports)
        last = [percent for _, percent, attempt in reports if attempt == newest][-1]
        assert desk.board.of(TINY) == {("ppo", newest): Progress(last, None, {})}


@given(st.binary(max_size=400) | st.text(max_size=400).map(str.encode))
def test_no_body_whatever_breaks_the_parser(body: bytes) -> None:
    parse_report(body)
    parse_report(b'{"trainerStatus": ' + body + b"}")
    parse_report(b'{"trainerStatus": {"progressPercentage": ' + body + b"}}")


def test_bodies_that_break_naive_parsers_are_refused_or_cleaned() -> None:
    assert parse_report(b"[" * 60_000) is None
    huge = b"9" * 400
    assert parse_report(b'{"trainerStatus": {"progressPercentage": ' + huge + b"}}") is None
    report = parse_report(
        b'{"trainerStatus": {"metrics": [{"name": "a\\ud800\\nb", "value": "123456.789"},'
        b' {"name": "current_step", "value": 1234567}], "estimatedRemainingSeconds": 7777}}'
    )
    assert report == Progress(None, 7800.0, {"ab": 123500.0, "current_step": 1234567.0})


def test_metrics_never_outgrow_their_limit() -> None:
    report = Progress()
    for start in range(0, 400, 40):
        names = range(start, start + 40)
        report = merged(report, Progress(metrics={f"m{number}": 1.0 for number in names}))
        assert len(report.metrics) <= METRIC_LIMIT
        assert f"m{start + 39}" in report.metrics
