"""What the optional webhook refuses, what it warns of, and what it leaves alone."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from builders import MANIFEST
from rlhf_api.job import RLHFJob
from rlhf_operator import admission as subject
from rlhf_operator.admission import Admission
from rlhf_operator.api import ApiError, Resource
from rlhf_operator.references import references
from rlhf_operator.render.platform import Platform

KUEUE = Platform(served=frozenset({"kueue.x-k8s.io/v1beta1/LocalQueue"}))


def a_manifest(**spec: Any) -> dict[str, Any]:
    """`stages__ppo__lora={…}` sets spec.stages.ppo.lora."""
    manifest = copy.deepcopy(MANIFEST)
    for name, value in spec.items():
        place, *path = manifest["spec"], *name.split("__")
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = value
    return manifest


class Cluster:
    """Objects that are there; `denied` kinds may not be looked at."""

    def __init__(self, *there: str, denied: str = "", slow: float = 0.0) -> None:
        self.there = {name: {"kind": "Any", "metadata": {}} for name in there}
        self.denied, self.slow, self.looks = denied, slow, list[str]()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> dict[str, Any]:
        self.looks.append(resource.path(namespace, name))
        await asyncio.sleep(self.slow)
        if resource.kind == self.denied:
            raise ApiError(403, "Forbidden", "no right")
        if name not in self.there:
            raise ApiError(404, "NotFound", "not found")
        return self.there[name]


def ask(
    new: Any,
    old: Any = None,
    cluster: Cluster | None = None,
    platform: Platform = Platform(),  # noqa: B008
    operation: str | None = None,
) -> dict[str, Any]:
    """The webhook's response, over a real connection."""
    operation = operation or ("UPDATE" if old else "CREATE")
    request = {"uid": "u-1", "operation": operation, "object": new, "oldObject": old}
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    status, answer = asyncio.run(post(review, cluster or Cluster(), platform))
    assert status == 200
    assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    assert answer["response"]["uid"] == "u-1"
    return answer["response"]


async def post(review: Any, cluster: Cluster, platform: Platform) -> tuple[int, Any]:
    runner = web.AppRunner(Admission(cluster.get, lambda: platform).app())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/validate"
    try:
        async with aiohttp.ClientSession() as session, session.post(url, json=review) as answer:
            return answer.status, await answer.json() if answer.status == 200 else None
    finally:
        await runner.cleanup()


def test_a_job_that_names_nothing_else_is_allowed_without_a_word() -> None:
    assert ask(a_manifest()) == {"uid": "u-1", "allowed": True, "warnings": []}


def test_what_the_validator_refuses_is_refused_in_its_words() -> None:
    response = ask(a_manifest(seed=-1, stages__ppo__kl={"coef": "much"}))
    assert not response["allowed"]
    status = response["status"]
    assert (status["code"], status["reason"]) == (422, "Invalid")
    assert "spec.seed: -1 is too small" in status["message"]
    fields = [cause["field"] for cause in status["details"]["causes"]]
    assert sorted(fields) == ["spec.seed", "spec.stages.ppo.kl.coef"]
    messages = [cause["message"] for cause in status["details"]["causes"]]
    assert any(message.startswith("-1 is too small (") for message in messages)


def test_of_very_many_problems_some_are_told_and_the_rest_counted() -> None:
    response = ask(a_manifest(**{f"unknown{number}": 1 for number in range(50)}))
    assert len(response["status"]["details"]["causes"]) == 20
    assert response["status"]["message"].endswith("… and 30 more")


def test_a_change_of_what_may_not_change_is_refused() -> None:
    old = a_manifest(checkpoints__existingClaim="shared")
    response = ask(a_manifest(checkpoints__existingClaim="other"), old)
    assert not response["allowed"]
    assert "spec.checkpoints.existingClaim: is immutable" in response["status"]["message"]


def test_a_job_that_newer_rules_refuse_can_still_be_labelled_and_deleted() -> None:
    bad = a_manifest(seed=-1)
    labelled = copy.deepcopy(bad)
    labelled["metadata"]["labels"] = {"team": "a"}
    assert ask(labelled, bad)["allowed"]
    assert ask(None, bad, operation="DELETE")["allowed"]


def test_what_newer_rules_refuse_may_stay_where_something_else_is_edited() -> None:
    """As the API server itself lets it: a job can be suspended, and mended in steps."""
    old = a_manifest(resources={"memory": "64", "shmSize": "16"})
    assert ask(old | {"spec": old["spec"] | {"suspend": True}}, old)["allowed"]
    assert ask(a_manifest(resources={"memory": "64Gi", "shmSize": "16"}), old)["allowed"]
    response = ask(a_manifest(resources={"memory": "64", "shmSize": "16"}, seed=-1), old)
    assert [cause["field"] for cause in response["status"]["details"]["causes"]] == ["spec.seed"]


def test_a_job_that_could_not_be_read_can_be_mended() -> None:
    assert ask(a_manifest(), a_manifest(seed=-1))["allowed"]


MISSING = [
    (
        {"checkpoints__existingClaim": "shared"},
        "spec.checkpoints.existingClaim: there is no PersistentVolumeClaim shared in namespace "
        "default; pods wait until it is there",
    ),
    (
        {"stages__sft__data": {"source": "pvc://corpus/sft.jsonl"}},
        "spec.stages.sft.data: there is no PersistentVolumeClaim corpus in namespace default; "
        "pods wait until it is there",
    ),
    (
        {"checkpoints__claim": {"storageClass": "fast"}},
        "spec.checkpoints.claim.storageClass: there is no StorageClass fast; the claim stays "
        "pending",
    ),
    (
        {"stages__ppo__resources": {"priorityClass": "urgent"}},
        "spec.stages.ppo.resources.priorityClass: there is no PriorityClass urgent; no pod is "
        "made until it is there",
    ),
    (
        {"resources__serviceAccount": "trainer"},
        "spec.resources.serviceAccount: there is no ServiceAccount trainer in namespace default; "
        "no pod is made until it is there",
    ),
    (
        {"scheduling": {"gang": "kueue", "queue": "research"}},
        "spec.scheduling.queue: there is no LocalQueue research in namespace default; nothing is "
        "admitted until it is there",
    ),
]


@pytest.mark.parametrize(
    ("spec", "warning"), MISSING, ids=[row[1].split(":")[0] for row in MISSING]
)
def test_what_is_named_and_not_there_is_a_warning_and_no_refusal(
    spec: dict[str, Any], warning: str
) -> None:
    response = ask(a_manifest(**spec), platform=KUEUE)
    assert response == {"uid": "u-1", "allowed": True, "warnings": [warning]}


def test_what_is_there_or_may_not_be_looked_at_is_no_warning() -> None:
    manifest = a_manifest(checkpoints__existingClaim="shared", resources__priorityClass="urgent")
    assert ask(manifest, cluster=Cluster("shared", "urgent"))["warnings"] == []
    assert ask(manifest, cluster=Cluster("shared", denied="PriorityClass"))["warnings"] == []


def test_an_api_server_that_is_slow_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "LOOK_SECONDS", 0.1)
    manifest = a_manifest(checkpoints__existingClaim="shared")
    assert ask(manifest, cluster=Cluster(slow=5))["warnings"] == []


def test_a_claim_that_several_nodes_cannot_share_is_a_warning() -> None:
    cluster = Cluster("shared")
    cluster.there["shared"]["spec"] = {"accessModes": ["ReadWriteOnce"]}
    spec: dict[str, Any] = {"checkpoints__existingClaim": "shared"}
    assert ask(a_manifest(**spec), cluster=cluster)["warnings"] == []
    several = a_manifest(**spec, stages__ppo__resources={"nodes": 2})
    assert ask(several, cluster=cluster)["warnings"] == [
        "spec.checkpoints.existingClaim: the claim shared is ReadWriteOnce, "
        "and stage ppo runs on 2 nodes"
    ]
    cluster.there["data"] = {"spec": {"accessModes": ["ReadOnlyMany"]}}
    several["spec"]["stages"]["ppo"]["data"] = {"source": "pvc://data/prompts.jsonl"}
    cluster.there["shared"]["spec"] = {"accessModes": ["ReadWriteOnce", "ReadWriteMany"]}
    assert ask(several, cluster=cluster)["warnings"] == []


def test_each_object_is_looked_at_once_and_secrets_never() -> None:
    cluster = Cluster()
    manifest = a_manifest(
        checkpoints__existingClaim="shared",
        stages__sft__data={"source": "pvc://shared/sft.jsonl"},
        stages__reward__data={"source": "pvc://shared/pairs.jsonl"},
        secrets=[{"name": "wandb"}],
        imagePullSecrets=["registry"],
    )
    assert len(ask(manifest, cluster=cluster)["warnings"]) == 1
    assert cluster.looks == ["/api/v1/namespaces/default/persistentvolumeclaims/shared"]


def test_a_queue_of_a_scheduler_that_is_not_served_is_not_looked_for() -> None:
    job = RLHFJob.parse(a_manifest(scheduling={"gang": "kueue", "queue": "research"}))
    assert references(job, Platform()) == []
    (reference,) = references(job, KUEUE)
    assert reference.kind.api_version == "kueue.x-k8s.io/v1beta1"


@pytest.mark.parametrize("review", [{}, [], None, "x", {"request": {}}, {"request": []}])
def test_what_is_no_review_is_refused(review: Any) -> None:
    status, _ = asyncio.run(post(review, Cluster(), Platform()))
    assert status == 400
