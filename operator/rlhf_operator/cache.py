"""What the operator knows of its jobs and their children. No I/O.

Fed by watches, by lists and by the answers to our own writes, in any order: the newest
resourceVersion of an object wins, and one that was seen to go does not come back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final

from rlhf_api.job import KIND

from rlhf_operator import kueue
from rlhf_operator.api import Object, Resource
from rlhf_operator.mending import applied
from rlhf_operator.names import LABEL_JOB, JobKey
from rlhf_operator.ownership import controller, controller_uid

REMEMBERED: Final = 20_000
"""UIDs of objects that are gone: a late answer that tells of one is older than that many ends."""

KEPT_SPEC: Final = {
    "Pod": ("nodeName", "terminationGracePeriodSeconds"),
    "Job": ("completions", "suspend", "template.spec.terminationGracePeriodSeconds"),
    "Workload": ("active",),
    KIND: None,
}
"""Fields of `spec` that anything reads; None: all. The rest would be most of the memory.
Of other kinds: the fields that we made."""
KEPT_STATUS: Final = {
    "Workload": ("conditions", "admissionChecks", "requeueState"),
    "PodGroup": (),
    "Service": (),
}
"""Fields of `status` that anything reads, for kinds of which that is not all."""
DROPPED_METADATA: Final = ("managedFields", "selfLink")


class Cache:
    """Jobs, and their children by job. `on_change` is told which job something happened to."""

    def __init__(self, on_change: Callable[[JobKey], None] = lambda key: None) -> None:
        self._on_change = on_change
        self._jobs: dict[JobKey, Object] = {}
        self._children: dict[JobKey, dict[tuple[str, str], Object]] = {}
        self._where: dict[str, JobKey] = {}  # by UID
        self._departed: dict[JobKey, dict[str, Object]] = {}  # by UID
        self._gone: OrderedDict[str, int] = OrderedDict()  # by UID, as of which version

    def job(self, key: JobKey) -> Object | None:
        """The RLHFJob."""
        return self._jobs.get(key)

    def jobs(self) -> Iterator[Object]:
        """Every RLHFJob."""
        return iter(list(self._jobs.values()))

    def known(self) -> set[JobKey]:
        """Every job that there is, or that has left something."""
        return {*self._jobs, *self._children}

    def children(self, key: JobKey, kind: str) -> list[Object]:
        """A job's children of a kind, owned or not: whoever carries the label."""
        return [item for (of, _), item in self._children.get(key, {}).items() if of == kind]

    def others(self, key: JobKey, kinds: Collection[str]) -> list[Object]:
        """A job's children of all but these kinds."""
        return [item for (of, _), item in self._children.get(key, {}).items() if of not in kinds]

    def named(self, key: JobKey, names: Collection[str]) -> list[Object]:
        """A job's children of these names, of any kind."""
        return [item for (_, of), item in self._children.get(key, {}).items() if of in names]

    def child(self, key: JobKey, kind: str, name: str) -> Object | None:
        """One of them."""
        return self._children.get(key, {}).get((kind, name))

    def departed(self, key: JobKey) -> list[Object]:
        """A job's pods that went before their Job, as they were last seen: how they ended, and who
        took them away, stands nowhere else any more."""
        return list(self._departed.get(key, {}).values())

    def version(self, item: Object) -> int:
        """What is known of this very object is of that version; 0 where nothing is."""
        key = self._where.get(item["metadata"]["uid"])
        known = self._find(key, item) if key else None
        is_it = known is not None and known["metadata"]["uid"] == item["metadata"]["uid"]
        return version_of(known) if known and is_it else 0

    def put(self, item: Object, *, is_asked_for: bool = False) -> None:
        """Takes in an object, unless something newer is known of it.

        `is_asked_for`: as the API server has just shown it. With another schema of its kind it
        shows the same version with other defaults.
        """
        key, uid = job_of(item), item["metadata"]["uid"]
        if key is None or version_of(item) <= self._gone.get(uid, -1):
            return
        known = self._find(key, item)
        if known is not None and version_of(known) >= version_of(item):
            is_as_new = version_of(known) == version_of(item)
            if not (is_asked_for and is_as_new and known != slim(item)):
                return
        before = self._where.get(uid)
        if before not in (None, key):  # somebody has changed its label
            self._forget(before, item)
        self._where[uid] = key
        self._departed.get(key, {}).pop(uid, None)
        if item["kind"] == KIND:
            self._jobs[key] = slim(item)
        else:
            self._children.setdefault(key, {})[_name(item)] = slim(item)
        self._on_change(key)

    def remove(self, item: Object, version: int | None = None) -> None:
        """Takes an object out, as of a version; one of the same name and another UID stays."""
        uid = item["metadata"]["uid"]
        self._gone[uid] = version or version_of(item)
        while len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)
        if key := self._where.pop(uid, None):
            self._forget(key, item)

    def _find(self, key: JobKey, item: Object) -> Object | None:
        if item["kind"] == KIND:
            return self._jobs.get(key)
        return self._children.get(key, {}).get(_name(item))

    def _forget(self, key: JobKey, item: Object) -> None:
        known = self._find(key, item)
        if known is None or known["metadata"]["uid"] != item["metadata"]["uid"]:
            return
        if item["kind"] == KIND:
            del self._jobs[key]
        else:
            del self._children[key][_name(item)]
            self._remember(key, item)
            if not self._children[key]:
                del self._children[key]
        self._on_change(key)

    def _remember(self, key: JobKey, gone: Object) -> None:
        """A pod for as long as its Job is there."""
        departed, uid = self._departed.get(key, {}), gone["metadata"]["uid"]
        if gone["kind"] == "Job":
            kept = {of: pod for of, pod in departed.items() if controller_uid(pod) != uid}
            self._departed[key] = kept
            if not kept:
                del self._departed[key]
        elif gone["kind"] == "Pod" and (owner := controller(gone)):
            job = self.child(key, "Job", owner["name"])
            if job is not None and job["metadata"]["uid"] == owner["uid"]:
                self._departed.setdefault(key, {})[uid] = slim(gone)

    def replace(
        self, resource: Resource, namespace: str | None, items: Iterable[Object], version: int
    ) -> None:
        """Takes in a whole list: what it does not name, and is not younger than it, is gone."""
        listed = list(items)
        there = {item["metadata"]["uid"] for item in listed}
        for item in self._of(resource, namespace):
            if item["metadata"]["uid"] not in there and version_of(item) <= version:
                self.remove(item, version)
        for item in listed:
            self.put(item)

    def _of(self, resource: Resource, namespace: str | None) -> list[Object]:
        """Of that group alone: PodGroups are of as many kinds as there are gang schedulers. In any
        version: the same object is served in each."""
        children = (item for store in self._children.values() for item in store.values())
        return [
            item
            for item in (self._jobs.values() if resource.kind == KIND else children)
            if item["kind"] == resource.kind
            and _group(item["apiVersion"]) == _group(resource.api_version)
            and namespace in (None, item["metadata"].get("namespace"))
        ]


def job_of(item: Object) -> JobKey | None:
    """The job that an object is, that its label names, or that Kueue made it for."""
    meta = item["metadata"]
    if item["kind"] == KIND:
        name = meta["name"]
    elif kueue.is_workload(item):
        name = kueue.rlhfjob_of(item)
    else:
        name = (meta.get("labels") or {}).get(LABEL_JOB)
    return JobKey(meta.get("namespace", ""), name) if name else None


def _group(api_version: str) -> str:
    return api_version.rpartition("/")[0]


def _name(item: Object) -> tuple[str, str]:
    return item["kind"], item["metadata"]["name"]


def slim(item: Object) -> Object:
    """The part of an object that anything reads."""
    kind = item["kind"]
    meta = {k: v for k, v in item["metadata"].items() if k not in DROPPED_METADATA}
    kept: Object = {"apiVersion": item["apiVersion"], "kind": kind, "metadata": meta}
    fields = KEPT_SPEC.get(kind, tuple(applied(item)))
    spec = item.get("spec") or {}
    kept["spec"] = spec if fields is None else _only(spec, fields)
    if status := item.get("status"):
        names = KEPT_STATUS.get(kind)
        kept["status"] = status if names is None else _only(status, names)
    return kept


def _only(values: Object, names: Iterable[str]) -> Object:
    """A dot in a name leads into a field of which nothing else is kept."""
    kept: Object = {}
    for name in names:
        field, _, inside = name.partition(".")
        if field in values:
            kept[field] = _only(values[field], [inside]) if inside else values[field]
    return kept


def version_of(item: Object) -> int:
    """Kubernetes promises that versions of one resource are numbers that rise (KEP-5504)."""
    return int(item["metadata"]["resourceVersion"])
