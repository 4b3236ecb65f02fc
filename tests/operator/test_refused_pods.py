"""Why pods are not made: in the API server's words, which the Job controller tells in events."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from rlhf_operator import refused_pods
from rlhf_operator.api import Api, ApiError
from rlhf_operator.refused_pods import RefusedPods, plain

Object = dict[str, Any]
JOB = {"metadata": {"uid": "of-the-job", "namespace": "team"}}
QUOTA = (
    'Error creating: pods "tiny-sft-1-1-mfh44" is forbidden: exceeded quota: few, requested: '
    "cpu=1,nvidia.com/gpu=4, used: cpu=2,nvidia.com/gpu=8, limited: cpu=9,nvidia.com/gpu=8"
)
PLAIN = "exceeded quota: few, requested: cpu=1,nvidia.com/gpu=4, limited: cpu=9,nvidia.com/gpu=8"


@pytest.mark.parametrize(
    ("note", "said"),
    [
        (QUOTA, PLAIN),
        (f"(combined from similar events): {QUOTA}", PLAIN),
        (
            'Error creating: pods "x" is forbidden: no PriorityClass with name high was found',
            "no PriorityClass with name high was found",
        ),
        (
            'Error creating: admission webhook "a.b" denied the request: no.',
            'admission webhook "a.b" denied the request: no',
        ),
        (  # a LimitRange sets limits below what is asked for
            'Error creating: Pod "tiny-sft-1-0-m4vx2" is invalid: spec.containers[0].resources.'
            'requests: Invalid value: "4": must be less than or equal to cpu limit of 50m',
            'spec.containers[0].resources.requests: Invalid value: "4": must be less than or equal '
            "to cpu limit of 50m",
        ),
        (
            'PodResourceClaim devices: resource claim template "a": '
            'resourceclaimtemplate.resource.k8s.io "a" not found',
            'resource claim template "a": resourceclaimtemplate.resource.k8s.io "a" not found',
        ),
        ("", ""),
    ],
)
def test_a_cause_is_told_without_what_changes_by_itself(note: str, said: str) -> None:
    assert plain(note) == said


class Server:
    """Has events; or refuses to tell them."""

    def __init__(self, *events: Object, code: int = 200) -> None:
        self.events, self.code, self.asked = events, code, []

    async def list(self, resource: Any, namespace: str, *, fields: str) -> Any:
        self.asked.append((resource.plural, namespace, fields))
        if self.code != 200:
            raise ApiError(self.code, "Forbidden", "no")
        return list(self.events), 9


def event(note: str, second: int, of: Object = JOB) -> Object:
    time = f"2026-01-31T12:00:0{second}Z"
    return {"note": note, "regarding": of["metadata"], "deprecatedLastTimestamp": time}


def why(server: Server, times: int = 1) -> list[str]:
    refused = RefusedPods(cast(Api, server))
    return [asyncio.run(refused.why(JOB)) for _ in range(times)]


def test_the_last_cause_counts_and_is_asked_for_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(event("first", 1), event("last", 3), event("second", 2))
    assert why(server, times=2) == ["last", "last"]
    assert server.asked == [("events", "team", "reason=FailedCreate")]
    monkeypatch.setattr(refused_pods, "ASK_AGAIN", 0.0)
    why(server, times=2)
    assert len(server.asked) == 3


def test_one_question_serves_all_jobs_of_a_namespace() -> None:
    other = {"metadata": {"uid": "of-another", "namespace": "team"}}
    elsewhere = {"metadata": {"uid": "elsewhere", "namespace": "lab"}}
    server = Server(event("no quota", 1), event("no class", 2, other))
    refused = RefusedPods(cast(Api, server))
    said = [asyncio.run(refused.why(job)) for job in (JOB, other, elsewhere)]
    assert said == ["no quota", "no class", ""]
    assert [namespace for _, namespace, _ in server.asked] == ["team", "lab"]


def test_who_may_not_read_events_says_nothing() -> None:
    assert why(Server(code=403)) == [""]
    assert why(Server()) == [""]


def test_claims_that_are_not_made_are_told_of_their_pods() -> None:
    pods = [{"metadata": {"uid": uid}} for uid in ("one", "two")]
    server = Server(event("no template", 1, pods[1]))
    refused = RefusedPods(cast(Api, server))
    assert asyncio.run(refused.why_unclaimed(JOB, pods)) == "no template"
    assert asyncio.run(refused.why_unclaimed(JOB, pods[:1])) == ""
    assert server.asked == [("events", "team", "reason=FailedResourceClaimCreation")]
    assert refused.is_asked_for([JOB])


def test_a_job_is_looked_at_again_until_its_pods_are_there() -> None:
    refused = RefusedPods(cast(Api, Server(event("no", 1))))
    assert not refused.is_asked_for([JOB])
    asyncio.run(refused.why(JOB))
    assert refused.is_asked_for([JOB])
    refused.forget(JOB)
    assert not refused.is_asked_for([JOB])
