"""The cache: whatever order news come in, it holds the newest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rlhf_operator.api import Resource
from rlhf_operator.cache import Cache
from rlhf_operator.names import JobKey
from rlhf_operator.watches import JOBS, PODS

KEY = JobKey("team", "tiny")
Object = dict[str, Any]


def an_object(
    version: int, *, kind: str = "Pod", name: str = "p", uid: str = "u", job: str | None = "tiny"
) -> Object:
    labels = {"rlhf.dev/job": job} if job else {}
    meta = {
        "name": name,
        "namespace": "team",
        "uid": uid,
        "resourceVersion": str(version),
        "labels": labels,
    }
    spec = {"nodeName": "a", "containers": ["much"]}
    return {"apiVersion": "v1", "kind": kind, "metadata": meta, "spec": spec}


def a_job(version: int, uid: str = "j") -> Object:
    return an_object(version, kind="RLHFJob", name="tiny", uid=uid, job=None)


def version_of(cache: Cache) -> str | None:
    found = cache.child(KEY, "Pod", "p")
    return found["metadata"]["resourceVersion"] if found else None


def test_an_older_version_does_not_turn_it_back() -> None:
    cache = Cache()
    cache.put(an_object(10))  # the answer to our own write
    cache.put(an_object(9))  # a watch that lags behind
    assert version_of(cache) == "10"


def test_another_schema_shows_the_same_version_with_other_defaults() -> None:
    heard: list[JobKey] = []
    cache = Cache(heard.append)
    newer, older = a_job_of(spec={"seed": 1, "knob": 0.5}), a_job_of(spec={"seed": 1})
    cache.put(newer)
    cache.put(older)  # a watch that tells late of what was
    assert cache.job(KEY) == newer
    cache.put(older, is_asked_for=True)
    assert cache.job(KEY) == older
    cache.put(older, is_asked_for=True)
    assert heard == [KEY, KEY]


def a_job_of(spec: Object) -> Object:
    meta = {"name": KEY.name, "namespace": KEY.namespace, "uid": "u", "resourceVersion": "10"}
    return {"apiVersion": "rlhf.dev/v1alpha1", "kind": "RLHFJob", "metadata": meta, "spec": spec}


def test_versions_are_numbers_and_no_texts() -> None:
    cache = Cache()
    cache.put(an_object(9))
    cache.put(an_object(10))
    assert version_of(cache) == "10"


def test_what_was_seen_to_go_does_not_come_back_by_a_late_answer() -> None:
    cache = Cache()
    cache.put(an_object(10))
    cache.remove(an_object(12))
    cache.put(an_object(11))
    assert version_of(cache) is None


def test_what_only_left_the_selection_comes_back() -> None:
    cache = Cache()
    cache.put(an_object(10))
    cache.remove(an_object(12), 12)  # its label was taken away
    cache.put(an_object(13))  # and given back
    assert version_of(cache) == "13"


def test_the_end_of_an_object_leaves_its_successor_alone() -> None:
    cache = Cache()
    cache.put(an_object(10, uid="old"))
    cache.put(an_object(20, uid="new"))
    cache.remove(an_object(15, uid="old"))
    assert version_of(cache) == "20"


def test_a_list_removes_what_it_does_not_name() -> None:
    cache = Cache()
    cache.put(an_object(10))
    cache.put(an_object(11, name="other", uid="o"))
    cache.replace(PODS, "team", [an_object(11, name="other", uid="o")], 20)
    assert version_of(cache) is None
    assert cache.child(KEY, "Pod", "other") is not None


def test_a_list_keeps_what_was_made_after_it() -> None:
    cache = Cache()
    cache.put(an_object(21))  # our own write, answered while the list was on its way
    cache.replace(PODS, "team", [], 20)
    assert version_of(cache) == "21"


def test_a_list_of_one_namespace_says_nothing_of_others() -> None:
    cache = Cache()
    cache.put(an_object(10))
    cache.replace(PODS, "another", [], 20)
    cache.replace(JOBS, "team", [], 20)
    assert version_of(cache) == "10"


def test_a_list_says_nothing_of_another_group_s_kind_of_that_name() -> None:
    """Volcano, KAI, coscheduling and Kubernetes each have a PodGroup of their own."""
    cache = Cache()
    group = {"apiVersion": "scheduling.volcano.sh/v1beta1"}
    cache.put(an_object(10, kind="PodGroup", name="tiny-ppo-1") | group)
    cache.replace(Resource("scheduling.k8s.io/v1beta1", "PodGroup", "podgroups"), None, [], 20)
    assert cache.child(KEY, "PodGroup", "tiny-ppo-1") is not None
    cache.replace(Resource("scheduling.volcano.sh/v1", "PodGroup", "podgroups"), None, [], 20)
    assert cache.child(KEY, "PodGroup", "tiny-ppo-1") is None


def test_a_child_whose_label_was_edited_belongs_to_one_job_only() -> None:
    seen: list[JobKey] = []
    cache = Cache(seen.append)
    cache.put(an_object(10))
    cache.put(an_object(11, job="thief"))
    assert version_of(cache) is None
    assert cache.children(JobKey("team", "thief"), "Pod")
    assert seen == [KEY, KEY, JobKey("team", "thief")]


def test_children_without_our_label_are_nobody_s() -> None:
    cache = Cache()
    cache.put(an_object(10, job=None))
    assert cache.known() == set()


def test_only_what_is_read_is_kept() -> None:
    cache = Cache()
    cache.put(an_object(10))
    found = cache.child(KEY, "Pod", "p")
    assert found is not None
    assert found["spec"] == {"nodeName": "a"}
    job = an_object(11, kind="Job", name="j", uid="k")
    template = {"spec": {"containers": ["much"], "terminationGracePeriodSeconds": 120}}
    job["spec"] = {"completions": 2, "template": template}
    cache.put(job)
    kept = cache.child(KEY, "Job", "j")
    assert kept is not None
    assert kept["spec"] == {
        "completions": 2,
        "template": {"spec": {"terminationGracePeriodSeconds": 120}},
    }


@pytest.mark.parametrize("kind", ["RLHFJob", "Pod", "Service", "ConfigMap"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 100_000, "{", "7"])
def test_nobody_s_annotation_breaks_off_what_feeds_it(kind: str, text: str) -> None:
    cache, item = Cache(), an_object(10, kind=kind, name="tiny")
    item["metadata"]["annotations"] = {"rlhf.dev/applied": text}
    cache.put(item)
    assert cache.known() == {KEY}


def test_a_job_and_its_children_are_known_until_the_last_is_gone() -> None:
    cache = Cache()
    cache.put(a_job(1))
    cache.put(an_object(2))
    cache.remove(a_job(3))
    assert cache.job(KEY) is None
    assert cache.known() == {KEY}
    cache.remove(an_object(4))
    assert cache.known() == set()


@given(st.permutations(range(1, 8)), st.booleans())
def test_any_order_of_news_ends_alike(order: list[int], is_gone: bool) -> None:
    """Versions 1 to 6 of one object, and the news of its end (version 7) or not."""
    cache = Cache()
    for version in order:
        if version < 7:
            cache.put(an_object(version))
        elif is_gone:
            cache.remove(an_object(version))
    assert version_of(cache) == (None if is_gone else "6")


def of_a_job(version: int, uid: str, owner: str) -> Object:
    item = an_object(version, name=uid, uid=uid)
    item["metadata"]["ownerReferences"] = [{"uid": owner, "name": owner, "controller": True}]
    return item


def test_pods_that_went_are_remembered_as_they_were_last_for_as_long_as_their_job_is_there() -> (
    None
):
    cache = Cache()
    first, second = (an_object(1, kind="Job", name=uid, uid=uid) for uid in ("one", "two"))
    for item in (first, second, of_a_job(2, "a", "one"), of_a_job(3, "b", "two")):
        cache.put(item)
    assert cache.departed(KEY) == []
    last = of_a_job(5, "a", "one") | {"status": {"phase": "Failed"}}
    cache.remove(last)
    cache.remove(of_a_job(6, "b", "two"))
    cache.remove(of_a_job(7, "c", "three"))
    assert [item["metadata"]["uid"] for item in cache.departed(KEY)] == ["a", "b"]
    assert cache.departed(KEY)[0]["status"] == {"phase": "Failed"}
    cache.put(of_a_job(8, "b", "two"))  # it had only left the selection
    cache.remove(second)
    assert [item["metadata"]["uid"] for item in cache.departed(KEY)] == ["a"]
    cache.remove(first)
    cache.remove(of_a_job(9, "b", "two"))
    assert cache.departed(KEY) == []
