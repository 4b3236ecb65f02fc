"""Events of a job and its pods in one form, whichever of the two APIs they were written with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Final

from rlhf_api.job import RLHFJob
from rlhf_operator.api import Resource
from rlhf_operator.cluster import RLHFJOBS
from rlhf_operator.messages import CONTROL

from rlhf_cli.targets.cluster_follow import LISTED, followed, together
from rlhf_cli.targets.cluster_requests import PODS, ClusterRequests, of_job
from rlhf_cli.targets.target import Happening, Object

EVENTS: Final = Resource("v1", "Event", "events")
OF_PODS: Final = "involvedObject.kind=Pod"
"""No selector names several pods."""


async def events(target: ClusterRequests, job: RLHFJob) -> list[Happening]:
    """Those that are there, oldest first. Raises Failure."""
    mine, _ = await target.listed(EVENTS, target.namespace, fields=_about(job))
    pods = {pod["metadata"]["name"] for pod in await target.raw_pods(of_job(job))}
    theirs: list[Object] = []
    if pods:
        theirs, _ = await target.listed(EVENTS, target.namespace, fields=OF_PODS)
    return _told(mine, theirs, pods, job)


async def follow_events(target: ClusterRequests, job: RLHFJob) -> AsyncIterator[list[Happening]]:
    """The same, again after each change, until the job is deleted; also of pods that are gone by
    then. Raises Failure."""
    api, namespace, name = target.api, target.namespace, job.metadata.name
    sources = {
        "job": followed(api, RLHFJOBS, namespace, fields=f"metadata.name={name}"),
        "pods": followed(api, PODS, namespace, selector=of_job(job)),
        "mine": followed(api, EVENTS, namespace, fields=_about(job)),
        "theirs": followed(api, EVENTS, namespace, fields=OF_PODS),
    }
    found: dict[str, dict[str, Object]] = {"mine": {}, "theirs": {}}
    pods, listed = set[str](), set[str]()
    async for source, kind, item in together(sources):
        if (source, kind) == ("job", "DELETED"):
            return
        if kind == LISTED:
            listed.add(source)
        elif source == "pods":
            pods.add(item["metadata"]["name"])
        elif source in found:
            found[source][item["metadata"]["uid"]] = item
            if kind == "DELETED":  # after the hour for which it is kept
                del found[source][item["metadata"]["uid"]]
            if source == "theirs" and item["involvedObject"].get("name") not in pods:
                continue
        if listed == sources.keys():
            yield _told(found["mine"].values(), found["theirs"].values(), pods, job)


def _about(job: RLHFJob) -> str:
    return f"involvedObject.uid={job.metadata.uid}"


def _told(
    mine: Iterable[Object], theirs: Iterable[Object], pods: set[str], job: RLHFJob
) -> list[Happening]:
    of_pods = (item for item in theirs if item["involvedObject"].get("name") in pods)
    found = [happening(item, job.metadata.name) for item in (*mine, *of_pods)]
    return sorted(found, key=lambda item: item.time)


def _shown(text: str) -> str:
    """Whoever may write an event does not write to the reader's terminal: no escape sequences."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def happening(item: Object, job: str) -> Happening:
    """The newest time at which it happened counts."""
    regarding = item["involvedObject"]
    series = item.get("series") or {}
    time = (
        series.get("lastObservedTime")
        or item.get("lastTimestamp")
        or item.get("eventTime")
        or item["metadata"]["creationTimestamp"]
    )
    about = "" if regarding["kind"] == "RLHFJob" else regarding.get("name", "")
    return Happening(
        time=time,
        type=item.get("type") or "Normal",
        reason=_shown(item.get("reason") or ""),
        message=_shown(item.get("message") or "").strip(),
        about=about,
        times=series.get("count") or item.get("count") or 1,
    )
