"""Whose a token is, and which attempt a pod works on: tables and properties, no server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progress_tokens import UID, a_child, a_pod, a_token, the_review
from rlhf_operator.progress_auth import (
    Budget,
    Identity,
    Reporter,
    TokenVerifier,
    claimed,
    reporter_of,
    review_body,
    reviewed,
)

POD = Identity("default", "tiny-ppo-3-0-x7k2p", UID)


def test_a_bound_token_names_its_pod() -> None:
    assert claimed(a_token()) == POD


@pytest.mark.parametrize("expires", [1, 2_000_000_000, None])
def test_when_a_token_expires_is_for_the_api_server_to_say(expires: int | None) -> None:
    assert claimed(a_token(exp=expires)) == POD


@pytest.mark.parametrize(
    "token",
    [
        "",
        "abc",
        "a.b.c",
        "..",
        a_token(aud=["https://kubernetes.default.svc"]),
        a_token(aud=None),
        a_token(**{"kubernetes.io": {"namespace": "default"}}),
        a_token(**{"kubernetes.io": {"namespace": "default", "pod": {"name": 1, "uid": "2"}}}),
        a_token(pod=""),
        a_token(pod="x" * 300),
        a_token() + "x" * 9000,
        a_token().replace(".", ". "),
        a_token().replace("e", "é"),
    ],
)
def test_what_is_no_token_of_a_pod_for_us_is_not_looked_at_further(token: str) -> None:
    assert claimed(token) is None


@given(st.text(max_size=300), st.text(max_size=300))
def test_no_text_whatever_breaks_the_reading_of_claims(first: str, second: str) -> None:
    assert claimed(f"{first}.{second}.x") is None
    assert claimed(first) is None


def test_a_review_vouches_for_the_pod_of_a_genuine_token() -> None:
    assert reviewed(the_review(a_token())) == POD
    assert review_body("t")["spec"] == {"token": "t", "audiences": ["rlhf.dev/progress"]}


def _changed(**changes: Any) -> dict[str, Any]:
    status = the_review(a_token())["status"]
    return {"status": status | changes}


def _user(**changes: Any) -> dict[str, Any]:
    return _changed(user=the_review(a_token())["status"]["user"] | changes)


@pytest.mark.parametrize(
    "review",
    [
        {},
        {"status": {}},
        the_review(a_token(signature="forged")),
        _changed(authenticated=False),
        _changed(authenticated="true"),
        _changed(audiences=[]),
        _changed(audiences=None),
        _changed(audiences=["https://kubernetes.default.svc"]),
        _changed(user=None),
        _user(username="admin"),
        _user(extra=None),
        _user(extra={"authentication.kubernetes.io/pod-name": ["a"]}),
        _user(
            extra={
                "authentication.kubernetes.io/pod-name": ["a", "b"],
                "authentication.kubernetes.io/pod-uid": ["1", "2"],
            }
        ),
    ],
)
def test_a_review_that_names_no_single_pod_vouches_for_none(review: dict[str, Any]) -> None:
    assert reviewed(review) is None


def test_a_pod_works_on_the_attempt_that_its_owners_name() -> None:
    assert reporter_of(a_pod(), a_child()) == Reporter("default", "tiny", "ppo", 3)


def _pod_with(**changes: Any) -> dict[str, Any]:
    pod = a_pod()
    pod["metadata"] |= changes
    return pod


def _labels(**changes: str) -> dict[str, Any]:
    labels = a_pod()["metadata"]["labels"] | {f"rlhf.dev/{k}": v for k, v in changes.items()}
    return _pod_with(labels=labels)


def _child_with(**changes: Any) -> dict[str, Any]:
    child = a_child()
    child["metadata"] |= changes
    return child


OWNER = a_pod()["metadata"]["ownerReferences"][0]
JOB_OWNER = a_child()["metadata"]["ownerReferences"][0]


@pytest.mark.parametrize(
    ("pod", "child"),
    [
        (_labels(job="other"), a_child()),
        (_labels(stage="sft"), a_child()),
        (_labels(attempt="4"), a_child()),
        (_labels(attempt="three"), a_child()),
        (_labels(attempt=""), a_child()),
        (_pod_with(labels=None), a_child()),
        (_pod_with(ownerReferences=None), a_child()),
        (_pod_with(ownerReferences=[OWNER | {"controller": False}]), a_child()),
        (_pod_with(ownerReferences=[OWNER | {"uid": "another"}]), a_child()),
        (_pod_with(namespace="elsewhere"), a_child()),
        (a_pod(), _child_with(ownerReferences=[])),
        (a_pod(), _child_with(ownerReferences=[JOB_OWNER | {"kind": "CronJob"}])),
        (a_pod(), _child_with(ownerReferences=[JOB_OWNER | {"name": "other"}])),
        (a_pod(attempt=3), a_child(attempt=2)),
    ],
)
def test_labels_without_the_owners_that_go_with_them_make_no_reporter(
    pod: dict[str, Any], child: dict[str, Any]
) -> None:
    assert reporter_of(pod, child) is None


def test_a_budget_allows_a_burst_and_then_its_rate() -> None:
    budget = Budget(rate=0.5, burst=2)
    assert [budget.spend("a", 0) for _ in range(3)] == [True, True, False]
    assert budget.spend("b", 0)
    assert not budget.spend("a", 1.9)
    assert budget.spend("a", 2)
    assert [budget.spend("a", 1000) for _ in range(3)] == [True, True, False]


def test_a_budget_remembers_so_many_keys_and_no_more() -> None:
    budget = Budget(rate=0, burst=1, limit=2)
    assert [budget.spend(key, 0) for key in "abab"] == [True, True, False, False]
    assert [budget.spend(key, 0) for key in "cb"] == [True, False]
    assert budget.spend("a", 0)  # forgotten, as the one used longest ago


class Reviews:
    """Answers TokenReviews and counts them; the test moves the clock."""

    def __init__(self) -> None:
        self.count, self.now, self.fails = 0, 0.0, False

    async def create(self, body: dict[str, Any]) -> dict[str, Any]:
        self.count += 1
        if self.fails:
            raise ConnectionError
        return the_review(body["spec"]["token"])

    def ask(self, verifier: TokenVerifier, token: str) -> Identity | None:
        if known := verifier.remembered(token):
            return known.identity
        return asyncio.run(verifier.ask(token)).identity


def test_a_genuine_token_is_reviewed_once_in_ten_minutes() -> None:
    reviews = Reviews()
    verifier, token = TokenVerifier(reviews.create, lambda: reviews.now), a_token()
    assert [reviews.ask(verifier, token) for _ in range(3)] == [POD] * 3
    reviews.now += 599
    assert reviews.ask(verifier, token) == POD
    assert reviews.count == 1
    reviews.now += 2
    reviews.ask(verifier, token)
    assert reviews.count == 2


def test_a_refused_token_is_asked_about_again_after_a_minute() -> None:
    reviews = Reviews()
    verifier = TokenVerifier(reviews.create, lambda: reviews.now)
    token = a_token(signature="forged")
    assert [reviews.ask(verifier, token) for _ in range(3)] == [None] * 3
    assert reviews.count == 1
    reviews.now += 61
    reviews.ask(verifier, token)
    assert reviews.count == 2


def test_a_failure_of_the_api_server_is_not_remembered() -> None:
    reviews = Reviews()
    verifier = TokenVerifier(reviews.create, lambda: reviews.now)
    reviews.fails = True
    with pytest.raises(ConnectionError):
        reviews.ask(verifier, a_token())
    reviews.fails = False
    assert reviews.ask(verifier, a_token()) == POD
