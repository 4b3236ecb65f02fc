"""What somebody else has changed of a Service or a gang object is seen, and put back once."""

from __future__ import annotations

import asyncio
import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from builders import NOON, a_job
from rendering import rendered
from rlhf_operator.api import ApiError, Resource
from rlhf_operator.cache import slim
from rlhf_operator.mending import MEND_AGAIN, Mender, drifted
from rlhf_operator.render import Platform
from rlhf_operator.watches import SERVICES

Object = dict[str, Any]
VOLCANO = Platform(served=frozenset(["scheduling.volcano.sh/v1beta1/PodGroup"]))
GROUPS = Resource("scheduling.volcano.sh/v1beta1", "PodGroup", "podgroups")


def on_the_server(kind: str) -> Object:
    """The child of an attempt, with what an API server fills in."""
    job = a_job().with_spec("resources", {"nodes": 4, "gpusPerNode": 8})
    made = copy.deepcopy(rendered("ppo", job, VOLCANO)[kind])
    made["metadata"] |= {"uid": f"uid-of-{kind}", "resourceVersion": "7", "namespace": "team"}
    if kind == "Service":
        made["spec"] |= {"type": "ClusterIP", "clusterIPs": ["None"], "ipFamilies": ["IPv4"]}
        made["spec"]["ports"][0]["targetPort"] = made["spec"]["ports"][0]["port"]
    return made


def edited(kind: str, path: str, value: Any) -> Object:
    item = on_the_server(kind)
    *parents, last = path.split(".")
    place = item["spec"]
    for name in parents:
        place = place[name]
    place[last] = value
    return item


@pytest.mark.parametrize("kind", ["Service", "PodGroup"])
def test_what_the_api_server_fills_in_is_no_change(kind: str) -> None:
    assert drifted(on_the_server(kind)) == {}
    assert drifted(slim(on_the_server(kind))) == {}


@pytest.mark.parametrize(
    ("kind", "path", "value", "field"),
    [
        ("Service", "selector.app", "mine", "selector"),
        ("Service", "selector", None, "selector"),
        ("Service", "ports", [], "ports"),
        ("Service", "publishNotReadyAddresses", False, "publishNotReadyAddresses"),
        ("PodGroup", "minMember", 1, "minMember"),
        ("PodGroup", "minTaskMember", {"worker": 1}, "minTaskMember"),
    ],
)
def test_a_change_is_told_with_what_was_there(kind: str, path: str, value: Any, field: str) -> None:
    made = on_the_server(kind)["spec"][field]
    found = drifted(slim(edited(kind, path, value)))
    assert list(found) == [field]
    if field != "ports":  # the API server adds to each port
        assert found == {field: made}


@pytest.mark.parametrize("text", ["", "not JSON", "[]", "null"])
def test_an_object_that_does_not_say_how_it_was_made_is_left_alone(text: str) -> None:
    item = edited("Service", "selector.app", "mine")
    item["metadata"]["annotations"]["rlhf.dev/applied"] = text
    assert drifted(item) == {}


class Server:
    """Takes patches, or refuses them."""

    def __init__(self, error: ApiError | None = None) -> None:
        self.error = error
        self.asked: list[Any] = []

    async def json_patch(self, _: Resource, __: str, ___: str, operations: Any) -> Object:
        self.asked.append(operations)
        if self.error:
            raise self.error
        return {}


def mend(server: Server, item: Object, resource: Resource = SERVICES) -> Mender:
    mender = Mender(server)  # type: ignore[arg-type]
    asyncio.run(mender.mend(resource, item))
    return mender


def test_only_what_was_changed_is_put_back_and_on_this_very_object() -> None:
    server, item = Server(), edited("PodGroup", "minMember", 1)
    mend(server, item, GROUPS)
    assert server.asked == [
        [
            {"op": "test", "path": "/metadata/uid", "value": "uid-of-PodGroup"},
            {"op": "add", "path": "/spec/minMember", "value": 4},
        ]
    ]


def test_somebody_who_insists_is_answered_once_in_a_while() -> None:
    item, now = edited("Service", "selector.app", "mine"), datetime.now(UTC)
    assert Mender(Server()).is_due(item, now)  # type: ignore[arg-type]
    mender = mend(Server(), item)
    now = datetime.now(UTC)
    assert not mender.is_due(item, now)
    due = mender.next_look([item], now)
    assert due is not None
    assert due <= now + MEND_AGAIN
    assert mender.is_due(item, due)
    assert mender.next_look([on_the_server("Service")], now) is None


def test_a_policy_that_never_gives_way_is_written_against_less_and_less() -> None:
    item, now, server = edited("Service", "selector.app", "mine"), NOON, Server()
    mender = Mender(server, lambda: now)  # type: ignore[arg-type]
    pauses = []
    for _ in range(7):
        asyncio.run(mender.mend(SERVICES, item))
        due = mender.next_look([item], now)
        assert due is not None
        pauses.append((due - now).total_seconds())
        now = due
    assert pauses == [30, 60, 120, 240, 480, 600, 600]
    now += timedelta(minutes=20)  # it has held meanwhile
    asyncio.run(mender.mend(SERVICES, item))
    assert mender.next_look([item], now) == now + MEND_AGAIN


@pytest.mark.parametrize("code", [403, 404, 409, 422])
def test_a_refusal_ends_nothing(code: int) -> None:
    mend(Server(ApiError(code, "Any", "no")), edited("Service", "selector.app", "mine"))


def test_a_server_that_is_away_is_asked_again_by_the_next_pass() -> None:
    with pytest.raises(ApiError):
        mend(Server(ApiError(503, "Any", "")), edited("Service", "selector.app", "mine"))
