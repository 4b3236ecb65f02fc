"""The claim for checkpoints is made once, and serves the job whatever is edited since."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from builders import UID, a_job
from rendering import STATUS
from rlhf_api.status import AttemptEnd
from rlhf_operator.api import Api, ApiError, Resource
from rlhf_operator.cache import Cache
from rlhf_operator.children import Children
from rlhf_operator.controller import Refused
from rlhf_operator.mending import Mender
from rlhf_operator.render import render

Object = dict[str, Any]


class Server:
    """Has a claim, and takes all else."""

    def __init__(self, claim: Object) -> None:
        self.claim, self.made = claim, list[str]()

    async def create(self, resource: Resource, body: Object) -> Object:
        if resource.kind == "PersistentVolumeClaim":
            raise ApiError(409, "AlreadyExists", "it is there")
        self.made.append(resource.kind)
        return known(body)

    async def get(self, *_: Any) -> Object:
        return self.claim


def known(item: Object) -> Object:
    meta = item["metadata"] | {"uid": item["kind"], "resourceVersion": "7"}
    return item | {"metadata": meta}


def children(retain: bool) -> list[Object]:
    place = {"claim": {"retain": retain}}
    return render(a_job().with_spec("checkpoints", place).build(), "prepare", 1, "h", "s")


def made(claim: Object, retain: bool, *, is_cached: bool) -> list[str]:
    server, cache = Server(known(claim)), Cache()
    if is_cached:
        cache.put(server.claim)
    api = cast(Api, server)
    asyncio.run(Children(api, cache, Mender(api), {}).apply(a_job().build(), children(retain)))
    return server.made


@pytest.mark.parametrize("is_cached", [True, False])
@pytest.mark.parametrize("retain", [True, False])
def test_an_edit_of_retain_makes_the_claim_nobody_else_s(retain: bool, is_cached: bool) -> None:
    claim = children(not retain)[0]
    assert made(claim, retain, is_cached=is_cached) == ["ConfigMap", "Job"]


@pytest.mark.parametrize("kind", ["RLHFJob", "StatefulSet"])
def test_a_claim_that_goes_with_another_object_is_not_ours(kind: str) -> None:
    claim = children(retain=False)[0]
    assert claim["metadata"]["ownerReferences"][0]["uid"] == UID
    claim["metadata"]["ownerReferences"][0] |= {"kind": kind, "uid": "another"}
    with pytest.raises(Refused):
        made(claim, retain=True, is_cached=False)


@pytest.mark.parametrize("retain", [True, False])
def test_a_claim_that_somebody_deletes_is_said_to_be_held_by_pods_that_ended(retain: bool) -> None:
    """kube-controller-manager keeps it as long as a pod names it, and we keep those for logs."""
    claim = children(retain)[0]
    claim["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    with pytest.raises(Refused) as refused:
        made(claim, retain, is_cached=True)
    kind, reason, said = refused.value.state
    assert (kind, reason) == ("Reconciling", "Terminating")
    assert said == (
        "PersistentVolumeClaim tiny-checkpoints is being deleted, with all checkpoints on it. It "
        "stays for as long as there are pods that name it, ended ones too, which go by: kubectl "
        "delete jobs -l rlhf.dev/job=tiny -n default."
    )


class Deleted(Server):
    """Somebody has deleted the claim, and may have restored it."""

    is_restored = False

    async def get(self, *_: Any) -> Object:
        if not self.is_restored:
            raise ApiError(404, "NotFound", "it is gone")
        return self.claim

    async def create(self, resource: Resource, body: Object) -> Object:
        self.made.append(resource.kind)
        return known(body)


def test_no_other_claim_is_made_in_place_of_one_that_had_results() -> None:
    """Pods with devices would look on it for what it never held."""
    end = AttemptEnd(attempt=1, kind="Done", reason="Done", time="2026-01-01T00:00:00Z")
    done = {name: of.model_copy(update={"ended": end}) for name, of in STATUS.stages.items()}
    job = a_job().build()
    job = job.model_copy(update={"status": STATUS.model_copy(update={"stages": done})})
    objects, restored = render(job, "ppo", 1, "h", "s"), known(children(retain=True)[0])
    server = Deleted(restored)
    made = Children(cast(Api, server), Cache(), Mender(cast(Api, server)), {})
    with pytest.raises(Refused, match="with it what sft, reward made") as refused:
        asyncio.run(made.apply(job, objects))
    assert refused.value.state[:2] == ("Stalled", "ClaimGone")
    assert "PersistentVolumeClaim" not in server.made
    assert "Job" not in server.made
    server.is_restored = True
    asyncio.run(made.apply(job, objects))
    assert "PersistentVolumeClaim" not in server.made
    assert server.made[-1] == "Job"


def test_a_claim_of_an_earlier_job_that_goes_is_waited_for() -> None:
    claim = children(retain=False)[0]
    claim["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    claim["metadata"]["ownerReferences"][0]["uid"] = "earlier"
    with pytest.raises(Refused, match="of an earlier RLHFJob of this name is still being deleted"):
        made(claim, retain=False, is_cached=False)


def test_a_service_of_another_name_is_its_attempt_s() -> None:
    job, cache = a_job().named("7b").build(), Cache()
    job = job.model_copy(update={"status": STATUS})
    service = next(i for i in render(job, "reward", 1, "h", "s") if i["kind"] == "Service")
    cache.put(known(service))
    api = cast(Api, None)
    (own,) = Children(api, cache, Mender(api), {}).own(job, "reward", 1)
    assert own["metadata"]["name"] == "x7b-reward-1-pods"
