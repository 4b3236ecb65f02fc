"""The progress server against a real API server: bound tokens, TokenReviews, two replicas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from cluster.client import PATIENCE, Client
from cluster.control_plane import ControlPlane
from rlhf_operator.names import JobKey
from rlhf_operator.progress_auth import Identity, Reporter, reporter_of
from rlhf_operator.progress_forward import KnownLeader
from rlhf_operator.progress_server import ProgressServer

AUDIENCE = "rlhf.dev/progress"
REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"


class Trainers:
    """Pods of attempts as the Job controller makes them, and their tokens."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client, self.namespace = client, namespace

    def start(self, job: str, stage: str = "ppo", attempt: int = 1) -> dict[str, Any]:
        """The pod of a new attempt's Job."""
        name = f"{job}-{stage}-{attempt}"
        labels = {"rlhf.dev/job": job, "rlhf.dev/stage": stage, "rlhf.dev/attempt": str(attempt)}
        container = {"name": "trainer", "image": "trainer:1", "command": ["train"]}
        template = {
            "metadata": {"labels": labels},
            "spec": {"restartPolicy": "Never", "containers": [container]},
        }
        spec = {"completionMode": "Indexed", "completions": 1, "parallelism": 1}
        body = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "labels": labels},
            "spec": spec | {"template": template},
        }
        self.client.create(body, self.namespace)
        return self.wait_for_pod(name)

    def wait_for_pod(self, job: str) -> dict[str, Any]:
        labels = f"batch.kubernetes.io/job-name={job}"
        deadline = time.monotonic() + PATIENCE
        while not (pods := self.client.list("v1/pods", self.namespace, labels=labels)):
            assert time.monotonic() < deadline, f"the Job controller made no pod for {job}"
            time.sleep(0.05)
        return pods[0]

    def token(self, pod: dict[str, Any] | None, audience: str = AUDIENCE) -> str:
        """As a projected volume has it; None: a token of the service account alone."""
        spec: dict[str, Any] = {"audiences": [audience], "expirationSeconds": 3600}
        if pod:
            reference = {"kind": "Pod", "apiVersion": "v1"}
            meta = {"name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
            spec["boundObjectRef"] = reference | meta
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        account = ("v1/serviceaccounts", "default", "token")
        return str(self.client.post(*account, body, self.namespace)["status"]["token"])

    def works_on(self, identity: Identity, reporter: Reporter) -> bool:
        """What an operator's cache knows; the Jobs here have no RLHFJob, so one is thought up."""
        pod = self.client.find("v1/pods", identity.pod, identity.namespace)
        if pod is None or pod["metadata"]["uid"] != identity.uid:
            return False
        name = pod["metadata"]["labels"]["job-name"]
        job = self.client.get("batch/v1/jobs", name, identity.namespace)
        owner = {"kind": "RLHFJob", "name": job["metadata"]["labels"]["rlhf.dev/job"], "uid": "1"}
        job["metadata"]["ownerReferences"] = [owner | {"controller": True}]
        return reporter_of(pod, job) == reporter


@pytest.fixture
def trainers(control_plane: ControlPlane, namespace: str) -> Trainers:
    return Trainers(control_plane.client, namespace)


@pytest.fixture
def reviewer(control_plane: ControlPlane, namespace: str) -> Client:
    """A client with the one right that the progress server needs, and no other."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator"}}
    rule = {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"]}
    rbac = "rbac.authorization.k8s.io"
    control_plane.client.create(account, namespace)
    control_plane.client.apply(
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": f"reviewer-{namespace}"},
            "rules": [rule | {"verbs": ["create"]}],
        }
    )
    control_plane.client.apply(
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"reviewer-{namespace}"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": f"reviewer-{namespace}"},
            "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": namespace}],
        }
    )
    return control_plane.client_for("operator", namespace)


class Replica:
    """A progress server that asks the real API server."""

    def __init__(self, client: Client, trainers: Trainers) -> None:
        self.leader = KnownLeader(is_here=True)
        self.taken: list[tuple[JobKey, str, int, float | None]] = []
        self.reviews, self.port = 0, 0
        self._client = client
        self.server = ProgressServer(
            create_review=self._review,
            works_on=trainers.works_on,
            take=lambda key, stage, attempt, report: self.taken.append(
                (key, stage, attempt, report.percent)
            ),
            leader=lambda: self.leader,
        )

    async def _review(self, body: dict[str, Any]) -> dict[str, Any]:
        self.reviews += 1
        return await asyncio.to_thread(self._client.request, "POST", REVIEWS, body)

    async def post(self, token: str, trainers: Trainers, where: str, percent: int = 40) -> int:
        url = f"http://127.0.0.1:{self.port}/namespaces/{trainers.namespace}/rlhfjobs/{where}"
        headers = {"Authorization": f"Bearer {token}"}
        body = {"trainerStatus": {"progressPercentage": percent}}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(url, json=body) as answer,
        ):
            return answer.status


def serve(test: Callable[[], Awaitable[None]], *replicas: Replica) -> None:
    async def main() -> None:
        try:
            for replica in replicas:
                replica.port = await replica.server.start("127.0.0.1", 0)
            await test()
        finally:
            for replica in replicas:
                await replica.server.close()

    asyncio.run(main())


def test_a_pods_own_token_reports_on_its_attempt_and_on_no_other(
    trainers: Trainers, reviewer: Client
) -> None:
    tiny, big = trainers.start("tiny"), trainers.start("big")
    own, others = trainers.token(tiny), trainers.token(big)
    loose = trainers.token(None)
    foreign = trainers.token(tiny, "https://kubernetes.default.svc")
    head, payload, _ = own.split(".")
    forged = f"{head}.{payload}.{others.split('.')[2]}"
    replica = Replica(reviewer, trainers)

    async def test() -> None:
        assert await replica.post(own, trainers, "tiny/ppo/1") == 200
        assert await replica.post(own, trainers, "tiny/ppo/2") == 403
        assert await replica.post(own, trainers, "big/ppo/1") == 403
        assert await replica.post(others, trainers, "tiny/ppo/1") == 403
        assert await replica.post(loose, trainers, "tiny/ppo/1") == 401
        assert await replica.post(foreign, trainers, "tiny/ppo/1") == 401
        assert replica.reviews == 1
        assert await replica.post(forged, trainers, "tiny/ppo/1") == 401
        assert replica.reviews == 2
        trainers.client.delete("v1/pods", tiny["metadata"]["name"], trainers.namespace)
        await asyncio.to_thread(_gone, trainers, tiny)
        assert await replica.post(own, trainers, "tiny/ppo/1") == 403

    serve(test, replica)
    assert replica.taken == [(JobKey(trainers.namespace, "tiny"), "ppo", 1, 40.0)]


def _gone(trainers: Trainers, pod: dict[str, Any]) -> None:
    name = pod["metadata"]["name"]
    trainers.client.wait_for("v1/pods", name, lambda found: found is None, trainers.namespace)


def test_two_replicas_of_which_leadership_moves_lose_no_later_report(
    trainers: Trainers, reviewer: Client
) -> None:
    token = trainers.token(trainers.start("tiny"))
    first, second = Replica(reviewer, trainers), Replica(reviewer, trainers)

    async def test() -> None:
        second.leader = KnownLeader(False, f"127.0.0.1:{first.port}")
        assert await second.post(token, trainers, "tiny/ppo/1", 10) == 200
        first.leader, second.leader = (
            KnownLeader(False, f"127.0.0.1:{second.port}"),
            KnownLeader(True),
        )
        assert await first.post(token, trainers, "tiny/ppo/1", 20) == 200
        await first.server.close()
        assert await second.post(token, trainers, "tiny/ppo/1", 30) == 200

    serve(test, first, second)
    assert [percent for *_, percent in first.taken] == [10.0]
    assert [percent for *_, percent in second.taken] == [20.0, 30.0]
    assert (first.reviews, second.reviews) == (1, 1)


def test_without_the_right_to_review_tokens_reports_are_put_off_and_nothing_breaks(
    control_plane: ControlPlane, trainers: Trainers
) -> None:
    token = trainers.token(trainers.start("tiny"))
    replica = Replica(control_plane.client_for("default", trainers.namespace), trainers)

    async def test() -> None:
        assert await replica.post(token, trainers, "tiny/ppo/1") == 503

    serve(test, replica)
    assert replica.taken == []
