"""An invariant that nothing can break proves nothing: each of them is broken here."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from faults.audit import Audit, Call
from faults.invariants import INVARIANTS, Expected, Run, outcome
from faults.ledger import Entry, History

Object = dict[str, Any]
READY = [{"type": "Ready", "status": "True"}]


class Story:
    """A pipeline of one stage, told as the API server would have it, step by step."""

    def __init__(self) -> None:
        self.history = History()
        self.calls = [Call("PUT status: sft 1 Succeeded", 1, code=200)]
        self.left: list[str] = []
        self._versions = itertools.count(1)

    def status(self, attempt: int, phase: str, conditions: list[Object] | None = None) -> None:
        stages = {"sft": {"attempt": attempt, "phase": phase}}
        status = {"prepare": {}, "stages": stages, "conditions": conditions or []}
        self._tell("RLHFJob", "MODIFIED", "tiny", status=status)

    def job(self, attempt: int) -> None:
        self._tell("Job", "ADDED", f"tiny-sft-{attempt}", attempt)

    def pod(self, attempt: int, phase: str = "Running") -> None:
        self._tell("Pod", "MODIFIED", f"pod-{attempt}", attempt, {"phase": phase})

    def end(self) -> Run:
        return Run(
            "", self.history, Audit(calls=self.calls), outcome(self.history, []), True, self.left
        )

    def _tell(
        self, kind: str, how: str, name: str, attempt: int = 0, status: Object | None = None
    ) -> None:
        labels = {"rlhf.dev/stage": "sft", "rlhf.dev/attempt": str(attempt)}
        meta = {"name": name, "uid": name, "labels": labels}
        meta["resourceVersion"] = str(next(self._versions))
        self.history.append(Entry(kind, how, {"metadata": meta, "status": status or {}}))


def one_attempt(story: Story) -> None:
    story.status(1, "Pending")
    story.job(1)
    story.pod(1)
    story.pod(1, "Succeeded")
    story.status(1, "Succeeded", READY)


def two_live_attempts(story: Story) -> None:
    one_attempt(story)
    story.pod(1)
    story.pod(2)


def a_job_that_nobody_announced(story: Story) -> None:
    story.job(1)
    one_attempt(story)


def a_stage_that_ran_twice(story: Story) -> None:
    one_attempt(story)
    story.job(2)


def a_result_that_got_lost(story: Story) -> None:
    one_attempt(story)
    story.status(1, "Pending")


def something_left(story: Story) -> None:
    one_attempt(story)
    story.left.append("pods/pod-1")


def an_attempt_that_was_skipped(story: Story) -> None:
    one_attempt(story)
    story.status(3, "Succeeded", READY)


def an_attempt_that_fell(story: Story) -> None:
    one_attempt(story)
    story.status(0, "Succeeded", READY)


def a_write_after_the_end(story: Story) -> None:
    one_attempt(story)
    story.calls.append(Call("DELETE jobs/tiny-sft-1", 2, code=200))


def a_refused_write_after_the_end(story: Story) -> None:
    one_attempt(story)
    story.calls.append(Call("PUT status: ", 1, code=409))


def a_last_status_that_was_sent_twice(story: Story) -> None:
    one_attempt(story)
    story.calls[-1].fault = "cut after"
    story.calls.append(Call("PUT status: ", 1, code=409))


def undisturbed() -> Expected:
    story = Story()
    one_attempt(story)
    return Expected(story.end().end, {"sft": 1})


def broken(tell: Callable[[Story], None]) -> set[str]:
    story = Story()
    tell(story)
    run, expected = story.end(), undisturbed()
    return {name for name, check in INVARIANTS.items() if list(check(run, expected))}


@pytest.mark.parametrize("tell", [one_attempt, a_last_status_that_was_sent_twice])
def test_a_run_that_comes_to_the_same_breaks_nothing(tell: Callable[[Story], None]) -> None:
    assert broken(tell) == set()


@pytest.mark.parametrize(
    ("invariant", "tell"),
    [
        ("I1", two_live_attempts),
        ("I1", a_job_that_nobody_announced),
        ("I2", a_stage_that_ran_twice),
        ("I2", a_result_that_got_lost),
        ("I3", something_left),
        ("I4", a_result_that_got_lost),
        ("I5", an_attempt_that_was_skipped),
        ("I5", an_attempt_that_fell),
        ("I7", a_result_that_got_lost),
        ("I7", a_write_after_the_end),
        ("I7", a_refused_write_after_the_end),
    ],
)
def test_what_breaks_an_invariant_is_seen(invariant: str, tell: Callable[[Story], None]) -> None:
    assert invariant in broken(tell)
